"""The heads of a step's tokens in one layer: what the model hands to attention."""

from typing import NamedTuple, Protocol

from torch import Tensor

from pbench.engine.model_config import ModelConfig
from pbench.kernels.project_write_kv import project_write_kv
from pbench.kernels.rotary_write_kv import Rotation, rotary_write_kv

MAX_FUSED_ROWS, MAX_FUSED_SIZE = 256, 2048  # that were faster on an H200; 4096 was not


class Heads(Protocol):
    """Of T tokens; rotated and kept once, by the attention that receives them."""

    def write_kv(self, kv: Tensor, slots: Tensor) -> Tensor:
        """Write keys, rotated, and values into one layer of the pool.

        Args:
            kv: (num_blocks, 2, num_kv_heads, block_size, head_dim).
            slots: int64 (T,); negative: nowhere.

        Returns:
            The queries, rotated: (T, num_heads, head_dim), contiguous in their last two dimensions; the scale
            1 / sqrt(head_dim) is still to be applied.

        """
        ...


class ProjectedHeads(NamedTuple):
    """Queries, keys and values as projected; may be views of one packed tensor, and are overwritten."""

    query: Tensor  # (T, num_heads, head_dim), contiguous in its last two dimensions, as the two below
    key: Tensor  # (T, num_kv_heads, head_dim)
    value: Tensor
    rotation: Rotation  # of queries and keys, with what norms them before

    def write_kv(self, kv: Tensor, slots: Tensor) -> Tensor:
        """See ``Heads``."""
        rotary_write_kv(self.query, self.key, self.value, self.rotation, kv, slots)
        return self.query


class UnprojectedHeads(NamedTuple):
    """What they are projected from, of few tokens: one kernel does all of it."""

    hidden: Tensor  # (T, hidden_size), normed
    weight: Tensor  # ((num_heads + 2 * num_kv_heads) * head_dim, hidden_size)
    bias: Tensor | None
    rotation: Rotation

    def write_kv(self, kv: Tensor, slots: Tensor) -> Tensor:
        """See ``Heads``."""
        return project_write_kv(self.hidden, self.weight, self.bias, self.rotation, kv, slots)


def most_fused_rows(config: ModelConfig) -> int:
    """For how many tokens at most ``UnprojectedHeads`` are the faster ones, where products of few rows are.

    A program of their kernel reads the weights of a whole head, for which a deeper product has too few of them.
    """
    return MAX_FUSED_ROWS if config.head_dim in (64, 128) and config.hidden_size <= MAX_FUSED_SIZE else 0
