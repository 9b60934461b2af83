import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pbench.kernels.update_tables import TILE_SIZE, update_tables, update_tables_reference, update_tables_triton

BLOCK_SIZE = 4


def int32(values, device="cpu"):
    return torch.tensor(values, dtype=torch.int32, device=device)


def a_step(context_lens, changes, *, width, device="cpu", seed=0):
    """Arguments of a step: tables and what a step held before are random; a change is (first entry, how many)."""
    generator = torch.Generator().manual_seed(seed)
    count = len(context_lens)
    tables = torch.randint(1000, (count + 2, width), generator=generator, dtype=torch.int32)
    out = torch.randint(1000, (count, width), generator=generator, dtype=torch.int32)
    rows = torch.randperm(count + 2, generator=generator)[:count].int()
    starts, sizes = zip(*changes, strict=True)
    entries = torch.randint(1000, 2000, (sum(sizes) + 3,), generator=generator, dtype=torch.int32)
    arguments = tables, rows, int32(context_lens), int32(starts), int32(sizes).cumsum(0).int(), entries
    return [argument.to(device) for argument in arguments], out.to(device)


def expected(arguments, out):
    """Tables and step after it, entry by entry."""
    tables, rows, context_lens, starts, ends, entries = [argument.tolist() for argument in arguments]
    out = out.tolist()
    first = 0
    for i, row in enumerate(rows):
        new = entries[first : ends[i]]
        tables[row][starts[i] : starts[i] + len(new)] = new
        num_held = -(-context_lens[i] // BLOCK_SIZE)
        out[i][:num_held] = tables[row][:num_held]
        first = ends[i]
    return tables, out


CONTEXT_LENS = [0, 1, 4, 5, BLOCK_SIZE * (TILE_SIZE + 2), 9]
CHANGES = [(0, 0), (0, 1), (0, 0), (1, 1), (TILE_SIZE - 3, 5), (0, 3)]


@pytest.mark.parametrize("width", [TILE_SIZE + 2, TILE_SIZE + 7])
def test_kernel_puts_in_what_is_new_and_copies_what_is_held(device, width):
    arguments, out = a_step(CONTEXT_LENS, CHANGES, width=width, device=device)
    tables, step = expected(arguments, out)
    update_tables_triton(*arguments, BLOCK_SIZE, out)
    assert arguments[0].tolist() == tables
    assert out.tolist() == step


def test_new_entries_behind_the_context_are_kept_for_later(device):
    arguments, out = a_step([4, 1], [(1, 3), (0, 2)], width=4, device=device)
    tables, step = expected(arguments, out)
    update_tables_triton(*arguments, BLOCK_SIZE, out)
    assert arguments[0].tolist() == tables
    assert [row[:1] for row in out.tolist()] == [row[:1] for row in step]


def test_a_step_can_be_narrower_than_the_tables(device):
    arguments, out = a_step([4, 8], [(0, 1), (1, 1)], width=6, device=device)
    out = out[:, :2].contiguous()
    tables, step = expected(arguments, out)
    update_tables_triton(*arguments, BLOCK_SIZE, out)
    assert arguments[0].tolist() == tables
    assert out.tolist() == step


@settings(max_examples=40, deadline=None)
@given(data=st.data(), width=st.integers(1, 8), count=st.integers(0, 5))
def test_launcher_on_cpu_is_right_for_any_step(data, width, count):
    context_lens = [data.draw(st.integers(0, width * BLOCK_SIZE)) for _ in range(count)]
    held = [-(-length // BLOCK_SIZE) for length in context_lens]
    starts = [data.draw(st.integers(0, most)) for most in held]
    changes = [(start, data.draw(st.integers(0, most - start))) for start, most in zip(starts, held, strict=True)]
    arguments, out = a_step(context_lens or [0], changes or [(0, 0)], width=width)
    tables, step = expected(arguments, out)
    update_tables(*arguments, BLOCK_SIZE, out)
    assert arguments[0].tolist() == tables
    assert out.tolist() == step


@pytest.mark.gpu
def test_kernel_is_the_reference_at_the_sizes_of_a_long_context():
    width, count = 8192, 256
    context_lens = [(i * 5003) % (width * BLOCK_SIZE) for i in range(count)]
    changes = [
        (max(-(-length // BLOCK_SIZE) - i % 3, 0), min(i % 3, -(-length // BLOCK_SIZE)))
        for i, length in enumerate(context_lens)
    ]
    arguments, out = a_step(context_lens, changes, width=width, device="cuda")
    others, other = [argument.clone() for argument in arguments], out.clone()
    update_tables(*arguments, BLOCK_SIZE, out)
    update_tables_reference(*others, BLOCK_SIZE, other)
    assert torch.equal(arguments[0], others[0])
    assert torch.equal(out, other)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tables", torch.zeros(3, dtype=torch.int32), "tables has shape"),
        ("rows", int32([0]), "rows has shape"),
        ("context_lens", torch.zeros(2, dtype=torch.int64), "context_lens is int64"),
        ("change_ends", int32([0, 0, 0, 0])[::2], "change_ends of shape .* has strides"),
        ("entries", torch.zeros(1, 1, dtype=torch.int32), "entries has shape"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(name, value, message):
    names = ("tables", "rows", "context_lens", "change_starts", "change_ends", "entries")
    arguments, out = a_step([1, 2], [(0, 1), (0, 0)], width=3)
    given_arguments = dict(zip(names, arguments, strict=True)) | {name: value}
    with pytest.raises(ValueError, match=message):
        update_tables(**given_arguments, block_size=BLOCK_SIZE, out=out)
