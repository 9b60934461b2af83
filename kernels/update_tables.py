"""The tables of a step's sequences, from the tables that stay on the device and what is new in them.

The host sends of each sequence at most one run of new entries. With ``first`` the end of the run of the sequence before
(0 of the first), sequence i has as many as ``change_ends[i] - first``, and they go where ``change_starts[i]`` says::

    tables[rows[i], change_starts[i] + k] = entries[first + k],     0 <= k < change_ends[i] - first
    out[i, j] = tables[rows[i], j],                                 j < ceil(context_lens[i] / block_size)

So what a step uploads does not grow with the contexts, and a CUDA graph finds its tables where it was captured.
"""

import torch

from pbench.kernels.compiler import jit, tl
from pbench.kernels.launch import (
    check_contiguous,
    check_dtype,
    check_num_dims,
    check_shape,
    runs_on_triton,
)
from pbench.kernels.launcher import Launch, Launcher, layout_of

TILE_SIZE = 512


@jit(
    do_not_specialize=("width", "out_width", "block_size"),
    do_not_specialize_on_alignment=(
        "rows_ptr",
        "context_lens_ptr",
        "change_starts_ptr",
        "change_ends_ptr",
        "entries_ptr",
    ),
)
def _update_tables_kernel(
    tables_ptr: tl.pointer_type,  # (max_running, width) int32, as all below
    rows_ptr: tl.pointer_type,  # (num_sequences,)
    context_lens_ptr: tl.pointer_type,  # (num_sequences,)
    change_starts_ptr: tl.pointer_type,  # (num_sequences,)
    change_ends_ptr: tl.pointer_type,  # (num_sequences,)
    entries_ptr: tl.pointer_type,  # (change_ends[-1],)
    step_tables_ptr: tl.pointer_type,  # (num_sequences, out_width)
    width: tl.tensor,
    out_width: tl.tensor,
    block_size: tl.tensor,
    TILE_SIZE: tl.constexpr,
) -> None:
    """Grid: (num_sequences,)."""
    i = tl.program_id(0)
    row_ptr = tables_ptr + tl.load(rows_ptr + i).to(tl.int64) * width
    start, end = tl.load(change_starts_ptr + i), tl.load(change_ends_ptr + i)
    first = tl.load(change_ends_ptr + i - 1, mask=i > 0, other=0)
    num_entries = tl.cdiv(tl.load(context_lens_ptr + i), block_size)
    for begin in range(0, tl.maximum(num_entries, start + end - first), TILE_SIZE):
        columns = begin + tl.arange(0, TILE_SIZE)
        is_new = (columns >= start) & (columns < start + end - first)
        is_old = (columns < num_entries) & ~is_new
        entries = tl.load(row_ptr + columns, mask=is_old, other=0)
        entries += tl.load(entries_ptr + first + columns - start, mask=is_new, other=0)
        tl.store(row_ptr + columns, entries, mask=is_new)
        out_columns = step_tables_ptr + i.to(tl.int64) * out_width + columns
        tl.store(out_columns, entries, mask=(is_new | is_old) & (columns < out_width))


_launch = Launcher(_update_tables_kernel)


def update_tables(
    tables: torch.Tensor,
    rows: torch.Tensor,
    context_lens: torch.Tensor,
    change_starts: torch.Tensor,
    change_ends: torch.Tensor,
    entries: torch.Tensor,
    block_size: int,
    out: torch.Tensor,
) -> None:
    """Put what is new into ``tables``, and the tables of a step into ``out``. All tensors are int32 and contiguous.

    Args:
        tables: ``(max_running, width)``.
        rows: ``(B,)``, of ``tables``; none twice among the sequences that have a context or a change.
        context_lens: ``(B,)``, tokens.
        change_starts: ``(B,)``, the first new entry of each.
        change_ends: ``(B,)``, never less than the one before: see above. No change reaches beyond ``width``.
        entries: at least ``change_ends[-1]``.
        block_size: slots in a block, so that entries for ``context_lens`` tokens are copied.
        out: ``(B, n)``; what no context reaches is left as it is, or is a new entry.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    check_num_dims("tables", tables, 2, "(max_running, width)")
    check_num_dims("out", out, 2, "(num_sequences, width)")
    check_num_dims("entries", entries, 1, "(num_entries,)")
    num_sequences = out.shape[0]
    per_sequence = (
        ("rows", rows),
        ("context_lens", context_lens),
        ("change_starts", change_starts),
        ("change_ends", change_ends),
    )
    for name, tensor in per_sequence:
        check_shape(name, tensor, (num_sequences,))
    for name, tensor in (("tables", tables), *per_sequence, ("entries", entries), ("out", out)):
        check_dtype(name, tensor, torch.int32)
        check_contiguous(name, tensor)
    if runs_on_triton(tables):
        update_tables_triton(tables, rows, context_lens, change_starts, change_ends, entries, block_size, out)
    else:
        update_tables_reference(tables, rows, context_lens, change_starts, change_ends, entries, block_size, out)


def update_tables_triton(
    tables: torch.Tensor,
    rows: torch.Tensor,
    context_lens: torch.Tensor,
    change_starts: torch.Tensor,
    change_ends: torch.Tensor,
    entries: torch.Tensor,
    block_size: int,
    out: torch.Tensor,
) -> None:
    """Launch the kernel on checked arguments (see ``update_tables``)."""
    if not len(out):
        return
    integers = (tables.shape[1], out.shape[1], block_size)
    _launch(
        (layout_of(tables, out), block_size),
        (tables, rows, context_lens, change_starts, change_ends, entries, out),
        (),
        lambda: Launch((len(out), 1, 1), integers, {"TILE_SIZE": TILE_SIZE}),
    )


def update_tables_reference(
    tables: torch.Tensor,
    rows: torch.Tensor,
    context_lens: torch.Tensor,
    change_starts: torch.Tensor,
    change_ends: torch.Tensor,
    entries: torch.Tensor,
    block_size: int,
    out: torch.Tensor,
) -> None:
    """``update_tables`` in plain torch."""
    num_new = change_ends.diff(prepend=change_ends.new_zeros(1))
    sequences = torch.arange(len(rows), device=rows.device).repeat_interleave(num_new)
    within = torch.arange(len(sequences), device=rows.device) - (change_ends - num_new)[sequences]
    columns = change_starts[sequences] + within
    tables[rows[sequences].long(), columns] = entries[: len(sequences)]
    is_held = torch.arange(out.shape[1], device=out.device) < -(-context_lens[:, None] // block_size)
    out.copy_(torch.where(is_held, tables[rows.long(), : out.shape[1]], out))
