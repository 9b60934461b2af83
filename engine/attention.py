"""The attention that the runner injects into the model: one batch of sequences over the pool."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, arange, cat, contiguous_format, empty, empty_like, int32

from pbench.engine.heads import Heads
from pbench.kernels.decode_attention import decode_attention, plan_for
from pbench.kernels.decode_plan import DecodePlan
from pbench.kernels.invariant_attention import invariant_attention
from pbench.kernels.prefill_attention import prefill_attention
from pbench.kernels.shared_attention import SharedRuns

# Up to so many decodes attention loads settled KV before the projection before it is done. Beside more the loads slow
# that one down, by as much as they gain.
MAX_DECODES_AHEAD = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of one step on the device: sequences with one token first, then the ragged rest."""

    token_ids: Tensor  # int64 (num_tokens,)
    positions: Tensor  # int64 (num_tokens,)
    slots: Tensor  # int64 (num_tokens,): where each token's KV goes; negative: nowhere
    context_lens: Tensor  # int32 (num_sequences,): tokens that each sequence attends to, those of this step included
    table: Tensor  # int32 (num_sequences, width)
    num_decodes: int  # sequences, and tokens, of the first kind
    query_start: Tensor | None  # int32 (num_sequences - num_decodes + 1,): first tokens of the second kind, and the end
    shared: SharedRuns | None = None  # of the decodes
    # int32 (1,): 1 where what the decodes attend to, but for the last token of each, was written in earlier steps.
    is_kv_settled: Tensor | None = None

    def last_tokens(self) -> Tensor:
        """int32 (num_sequences,), in a batch with prompts: the last token of each; of one that has no token, any."""
        assert self.query_start is not None, "every token is its sequence's last"
        decodes = arange(self.num_decodes, dtype=int32, device=self.table.device)
        return cat((decodes, (self.query_start[1:] - 1).clamp_(min=0)))


class BatchAttention:
    """Attention of one batch. In each layer the KV of all its tokens is written before any is read."""

    def __init__(self, batch: Batch, pool: Tensor, windows: Sequence[int | None], *, is_contiguous: bool) -> None:
        self.batch = batch
        self.windows = windows  # of each layer: tokens that a token sees at most; None: all before it
        self.is_contiguous = is_contiguous
        self.scale = pool.shape[-1] ** -0.5
        # Views are made once for all layers: each costs the host a microsecond.
        self._layers = pool.unbind()  # each (num_blocks, 2, num_kv_heads, block_size, head_dim)
        num_decodes = batch.num_decodes
        self._decode_table, self._prefill_table = batch.table[:num_decodes], batch.table[num_decodes:]
        self._decode_lens, self._prefill_lens = batch.context_lens[:num_decodes], batch.context_lens[num_decodes:]
        # Made in the first layer with a window (or none), for all: lengths are the same in each.
        self._decode_plans: dict[int | None, DecodePlan | None] = {}

    def __call__(self, layer_index: int, heads: Heads) -> Tensor:
        """See ``pbench.engine.model.Attention``."""
        batch, kv, num_decodes = self.batch, self._layers[layer_index], self.batch.num_decodes
        window = self.windows[layer_index]
        query = heads.write_kv(kv, batch.slots)
        out = empty_like(query, memory_format=contiguous_format)
        if num_decodes:
            if window not in self._decode_plans:
                shared = batch.shared if window is None else None
                settled = batch.is_kv_settled if num_decodes <= MAX_DECODES_AHEAD else None
                self._decode_plans[window] = plan_for(query, kv, self._decode_lens, shared, window, settled)
            decode_attention(
                query[:num_decodes],
                kv,
                self._decode_table,
                self._decode_lens,
                scale=self.scale,
                is_contiguous=self.is_contiguous,
                out=out[:num_decodes],
                plan=self._decode_plans[window],
                window=window,
            )
        if batch.query_start is not None:
            prefill_attention(  # after the decodes: where their number is padded, these are what is written last
                query,
                kv,
                self._prefill_table,
                batch.query_start,
                self._prefill_lens,
                scale=self.scale,
                is_contiguous=self.is_contiguous,
                window=window,
                out=out,
            )
        return out


class InvariantAttention:
    """The same for engines that are batch invariant: one kernel attends from the tokens of all sequences alike."""

    def __init__(self, batch: Batch, pool: Tensor, windows: Sequence[int | None], *, is_contiguous: bool) -> None:
        self.batch = batch
        self.windows = windows
        self._layers = pool.unbind()
        self.is_contiguous = is_contiguous
        self.scale = pool.shape[-1] ** -0.5
        self._query_start = _all_query_starts(batch)

    def __call__(self, layer_index: int, heads: Heads) -> Tensor:
        """See ``pbench.engine.model.Attention``."""
        batch, kv = self.batch, self._layers[layer_index]
        query = heads.write_kv(kv, batch.slots)
        return invariant_attention(
            query,
            kv,
            batch.table,
            self._query_start,
            batch.context_lens,
            scale=self.scale,
            is_contiguous=self.is_contiguous,
            window=self.windows[layer_index],
        )


def _all_query_starts(batch: Batch) -> Tensor:
    """int32 (num_sequences + 1,): the first tokens of all sequences, decodes included, and the end.

    Found on the device, where a CUDA graph may have room for more decodes than there are: those have no context, and
    no token either.
    """
    num_decodes = batch.num_decodes
    starts = empty(len(batch.context_lens) + 1, dtype=int32, device=batch.context_lens.device)
    starts[:1] = 0
    starts[1 : num_decodes + 1] = (batch.context_lens[:num_decodes] > 0).cumsum(0)
    if batch.query_start is not None:
        starts[num_decodes:] = batch.query_start  # from the end of the decodes on
    return starts
