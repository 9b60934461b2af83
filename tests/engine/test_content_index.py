"""The cache index: names of content, and the way from content to block and back."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbench.engine.content_index import SHARD_BLOCKS, ContentIndex, extend_digests

BLOCK_SIZE = 2


def digests_of(token_ids: list[int], salt: str = "", strides: tuple[int, ...] = ()) -> list[bytes]:
    """The digests of all full blocks, made in strides of so many blocks and the rest in one."""
    num_blocks = len(token_ids) // BLOCK_SIZE
    digests: list[bytes] = []
    for stride in (*strides, num_blocks):
        end = min(len(digests) + stride, num_blocks)
        extend_digests(digests, array("i", token_ids[len(digests) * BLOCK_SIZE : end * BLOCK_SIZE]), BLOCK_SIZE, salt)
    return digests


@given(st.integers(0, 3 * SHARD_BLOCKS), st.lists(st.integers(0, 2 * SHARD_BLOCKS), max_size=4))
@settings(max_examples=30, deadline=None)
def test_digests_do_not_depend_on_when_they_were_made(num_blocks: int, strides: list[int]) -> None:
    tokens = list(range(num_blocks * BLOCK_SIZE))
    assert digests_of(tokens, strides=tuple(strides)) == digests_of(tokens)


@given(st.integers(1, 2 * SHARD_BLOCKS + 2), st.data())
@settings(max_examples=30, deadline=None)
def test_digests_agree_up_to_the_first_token_that_differs(num_blocks: int, data: st.DataObject) -> None:
    tokens = [7] * (num_blocks * BLOCK_SIZE)
    position = data.draw(st.integers(0, len(tokens) - 1))
    other = [*tokens[:position], 8, *tokens[position + 1 :]]
    is_equal = [mine == theirs for mine, theirs in zip(digests_of(tokens), digests_of(other), strict=True)]
    assert is_equal == [block < position // BLOCK_SIZE for block in range(num_blocks)]


def test_no_digest_is_repeated_within_a_prompt_or_under_another_salt() -> None:
    tokens = [7] * (3 * SHARD_BLOCKS * BLOCK_SIZE)
    assert len({*digests_of(tokens), *digests_of(tokens, salt="a")}) == 6 * SHARD_BLOCKS


def test_neighbours_share_a_shard() -> None:
    index = ContentIndex(3 * SHARD_BLOCKS)
    index.add(list(range(3 * SHARD_BLOCKS)), digests_of([7] * (3 * SHARD_BLOCKS * BLOCK_SIZE)))
    assert [len(shard) for shard in index._shards.values()] == [SHARD_BLOCKS] * 3


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.integers(0, 11)), max_size=60))
@settings(max_examples=60, deadline=None)
def test_the_index_agrees_with_a_dictionary(operations: list[tuple[bool, int, int]]) -> None:
    digests = digests_of(list(range(6 * BLOCK_SIZE))) + digests_of([9] * (6 * BLOCK_SIZE))
    index, model = ContentIndex(8), dict[bytes, int]()
    for is_add, block_id, content in operations:
        if is_add and block_id not in model.values():
            index.add([block_id], [digests[content]])
            model.setdefault(digests[content], block_id)
        elif not is_add and block_id in model.values():
            index.remove([block_id])
            model = {digest: other for digest, other in model.items() if other != block_id}
        assert [index.find(digest) for digest in digests] == [model.get(digest) for digest in digests]
        assert index.is_empty == (not model)
        index.check_integrity()


def test_the_audit_sees_planted_damage() -> None:
    digests = digests_of([7] * (2 * BLOCK_SIZE))
    for damage in ("lost block", "lost content", "empty shard", "one block twice"):
        index = ContentIndex(2)
        index.add([0], digests[:1])
        (shard,) = index._shards.values()
        if damage == "lost block":
            index.digest_by_block[0] = None
        elif damage == "lost content":
            index._shards.clear()
        elif damage == "empty shard":
            index._shards[b"none"] = {}
        else:
            index.digest_by_block[0] = digests[1]
            shard[digests[1]] = 0
        with pytest.raises(AssertionError):
            index.check_integrity()
