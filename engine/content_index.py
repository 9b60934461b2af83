"""ContentIndex: which block holds which content, and how content is named."""

import hashlib
from array import array

SHARD_BLOCKS = 64  # neighbours of a prompt whose digests share a name; 16 and 256 measured nearly the same
_NAME_BYTES = 8
_NEW_HASH = hashlib.sha256()  # a copy of it begins a third sooner than a new one


def extend_digests(digests: list[bytes], token_ids: "array[int]", block_size: int, salt: str) -> None:
    """Append the digests of a sequence's next full blocks, whose tokens are ``token_ids``.

    A digest is the name of a shard and the SHA-256 of its parent's digest and the block's own tokens, so that it
    stands for the whole prefix, and no collision can hand out another prompt's KV. The first digest's parent is the
    salt: sequences with different salts never share a block.

    A shard is named by the hash of the first of its ``SHARD_BLOCKS`` blocks: equal prefixes have equal digests.
    """
    num_bytes = block_size * token_ids.itemsize
    content = token_ids.tobytes()
    digest = digests[-1] if digests else hashlib.sha256(salt.encode()).digest()
    name, new_hash, append = digest[:_NAME_BYTES], _NEW_HASH.copy, digests.append
    num_until_name = -len(digests) % SHARD_BLOCKS
    for start in range(0, len(content), num_bytes):
        hashed = new_hash()
        hashed.update(digest + content[start : start + num_bytes])
        own = hashed.digest()
        if num_until_name == 0:
            name, num_until_name = own[:_NAME_BYTES], SHARD_BLOCKS
        num_until_name -= 1
        digest = name + own
        append(digest)


class ContentIndex:
    """From digests to blocks and back. Every operation costs O(1) per block.

    The digests that share a name are a shard, a small dictionary of its own. In one large dictionary neighbours of a
    prompt lie anywhere, and every access waits for memory: in a pool of a million blocks that takes longer than all
    else that is done for the block. Prompts that differ in nothing but their ends share a shard, which is then larger.
    """

    def __init__(self, num_blocks: int) -> None:
        self.digest_by_block: list[bytes | None] = [None] * num_blocks
        self._shards: dict[bytes, dict[bytes, int]] = {}  # by name; none is empty

    @property
    def is_empty(self) -> bool:
        """Whether no block is in the index."""
        return not self._shards

    def find(self, digest: bytes) -> int | None:
        """The block with this content."""
        shard = self._shards.get(digest[:_NAME_BYTES])
        return None if shard is None else shard.get(digest)

    def find_first(self, digests: list[bytes]) -> list[int]:
        """The blocks with these contents, up to the first content that no block has."""
        block_ids: list[int] = []
        name, shard = b"", None
        for digest in digests:
            if shard is None or not digest.startswith(name):
                name = digest[:_NAME_BYTES]
                shard = self._shards.get(name)
                if shard is None:
                    break
            block_id = shard.get(digest)
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def add(self, block_ids: list[int], digests: list[bytes]) -> None:
        """Enter blocks that are not in the index, but for content that another block has already."""
        shards, digest_by_block = self._shards, self.digest_by_block
        name, shard = b"", None
        for block_id, digest in zip(block_ids, digests, strict=True):
            assert digest_by_block[block_id] is None, f"block {block_id} is registered twice"
            if shard is None or not digest.startswith(name):
                name = digest[:_NAME_BYTES]
                shard = shards.setdefault(name, {})
            if shard.setdefault(digest, block_id) == block_id:
                digest_by_block[block_id] = digest

    def remove(self, block_ids: list[int]) -> None:
        """Drop blocks that are in the index."""
        shards, digest_by_block = self._shards, self.digest_by_block
        for block_id in block_ids:
            digest = digest_by_block[block_id]
            assert digest is not None, f"block {block_id} is not in the cache index"
            digest_by_block[block_id] = None
            name = digest[:_NAME_BYTES]
            shard = shards[name]
            del shard[digest]
            if not shard:
                del shards[name]

    def check_integrity(self) -> None:
        """Audit that both ways lead back.

        Raises:
            AssertionError: the index is torn, or keeps an empty shard.

        """
        assert all(self._shards.values()), "the cache index keeps an empty shard"
        found = {block_id: digest for shard in self._shards.values() for digest, block_id in shard.items()}
        known = {block_id: digest for block_id, digest in enumerate(self.digest_by_block) if digest is not None}
        assert found == known, "the cache index is torn"
        assert sum(map(len, self._shards.values())) == len(known), "two contents lead to one block"
