"""Mutants: a memory with one planted bug each. The random-operations test must fail for every one of them."""

import importlib.util
from bisect import insort
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from pbench.engine.block_pool import BlockPool
from pbench.engine.buddy import BuddyAllocator
from pbench.engine.buddy_memory import BuddyMemory
from pbench.engine.child_index import ChildIndex
from pbench.engine.content_index import ContentIndex
from pbench.engine.contiguous_memory import ContiguousMemory
from pbench.engine.extents import ExtentAllocator
from pbench.engine.paged_memory import PagedMemory
from pbench.engine.reservation import ReserveFinal
from pbench.engine.static_memory import StaticMemory


def _load(name: str) -> ModuleType:
    """A test module beside this one: they are no package, so that none can shadow an installed one."""
    spec = importlib.util.spec_from_file_location(f"mutants_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MACHINES = _load("test_memory")

# Few examples, the same ones for the same modules loaded, and the first failure is enough.
_SETTINGS = settings(
    max_examples=200,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

# A bug shows itself within a few dozen examples as a rule, and not in every two hundred.
_SEARCH = settings(_SETTINGS, max_examples=4000)

Method = Callable[..., Any]


class Mutant(NamedTuple):
    """``mutate`` turns a method into the same with a bug."""

    bug: str
    machine: str  # that must notice
    owner: type
    method: str
    mutate: Callable[[Method], Method]


def _lost_reference(release: Method) -> Method:
    return lambda self, block_ids: release(self, block_ids[1:])


def _double_release(release: Method) -> Method:
    return lambda self, block_ids: release(self, [*block_ids, *block_ids[:1]])


def _uncounted_share(acquire: Method) -> Method:
    def acquire_without_counting(self: BlockPool, block_ids: Iterable[int]) -> None:
        acquire(self, [block_id for block_id in block_ids if self.num_refs[block_id] == 0])

    return acquire_without_counting


def _sole_owner(_: Method) -> Method:
    return lambda self, block_id: 1


def _last_dropped(take: Method) -> Method:
    return lambda self: take(self)[:-1]


def _turned_around(take: Method) -> Method:
    return lambda self: [(destination, source) for source, destination in take(self)]


def _one_token_further(find_prefix: Method) -> Method:
    return lambda self, seq, num_tokens: find_prefix(self, seq, num_tokens + 1)


def _parentless(extend_digests: Method) -> Method:
    def extend(self: PagedMemory, seq: Any, digests: list[bytes], num_blocks: int) -> None:
        while len(digests) < num_blocks:
            alone: list[bytes] = []
            seq_of_one_block = _OneBlock(seq, len(digests) * self.block_size, self.block_size)
            extend_digests(self, seq_of_one_block, alone, 1)
            digests += alone

    return extend


class _OneBlock:
    """A sequence that begins with the block at ``start`` of another one."""

    def __init__(self, seq: Any, start: int, block_size: int) -> None:
        self.token_ids = seq.token_ids[start : start + block_size]
        self.request = seq.request


def _too_early(commit: Method) -> Method:
    def commit_unplanned(self: PagedMemory, seq: Any) -> None:
        num_computed = seq.num_computed_tokens
        seq.num_computed_tokens = min(num_computed + 2, seq.num_tokens)
        commit(self, seq)
        seq.num_computed_tokens = num_computed

    return commit_unplanned


def _never_forgotten(remove: Method) -> Method:
    def remove_one_way(self: ContentIndex, block_ids: list[int]) -> None:
        shards = {name: dict(shard) for name, shard in self._shards.items()}
        remove(self, block_ids)
        self._shards = shards

    return remove_one_way


def _unmerged(_: Method) -> Method:
    def free(self: BuddyAllocator, start: int, length: int) -> None:
        insort(self._starts_by_order[length.bit_length() - 1], start)
        self.num_free += length

    return free


def _unmerged_extents(_: Method) -> Method:
    def free(self: ExtentAllocator, start: int, length: int) -> None:
        index = sum(other < start for other in self._starts)
        self._starts.insert(index, start)
        self._lengths.insert(index, length)
        self.num_free += length

    return free


def _freed_twice(free: Method) -> Method:
    def free_twice(self: Any, start: int, length: int) -> None:
        free(self, start, length)
        free(self, start, length)

    return free_twice


def _any_buddy(extend: Method) -> Method:
    def extend_unaligned(self: BuddyAllocator, start: int, length: int, new_length: int) -> bool:
        order = length.bit_length() - 1
        if new_length == 2 * length and self._is_free(start + length, order):
            self._remove(start + length, order)
            self.num_free -= length
            return True
        return bool(extend(self, start, length, new_length))

    return extend_unaligned


def _one_slot_short(take: Method) -> Method:
    return lambda self: [(source, destination, num_slots - 1) for source, destination, num_slots in take(self)]


def _left_too_early(grow: Method) -> Method:
    def grow_and_free(self: BuddyMemory, seq: Any, num_new_tokens: int) -> int | None:
        changed_from = grow(self, seq, num_new_tokens)
        if changed_from == 0:
            move = self._pending_moves[seq.seq_id]
            self._buddies.free(move.start, move.length)
        return changed_from  # type: ignore[no-any-return]

    return grow_and_free


def _move_outlives_its_sequence(_: Method) -> Method:
    return lambda self, seq: ContiguousMemory.free(self, seq)


def _one_less(length: Method) -> Method:
    return lambda self, *args: max(length(self, *args) - 1, 1)


def _given_back_early(free: Method) -> Method:
    def free_own_extent(self: StaticMemory, seq: Any) -> None:
        extent = self._batch.pop(seq.seq_id)
        free(self, seq)
        self._allocator.free(extent.start, extent.length)

    return free_own_extent


def _doors_open(_: Method) -> Method:
    return lambda self, seq, num_tokens, num_running: ContiguousMemory.admit(self, seq, num_tokens, num_running)


def _last_not_swapped(way: str) -> Callable[[Method], Method]:
    def mutate(take_swaps: Method) -> Method:
        def take_all_but_one(self: PagedMemory) -> Any:
            swaps = take_swaps(self)
            return swaps._replace(**{way: getattr(swaps, way)[:-1]})

        return take_all_but_one

    return mutate


def _always(_: Method) -> Method:
    return lambda self, *_: True


def _never(_: Method) -> Method:
    return lambda self, *_: False


def _visible_at_once(add: Method) -> Method:
    def add_and_show(self: ChildIndex, parent: int | None, salt: str, block_ids: list[int], token_ids: Any) -> None:
        add(self, parent, salt, block_ids, token_ids)
        self._step_added[block_ids] = -1

    return add_and_show


def _nothing(_: Method) -> Method:
    return lambda self, *_: None


def _one_further(longest: Method) -> Method:
    def longest_and_one(self: ChildIndex, *arguments: Any) -> tuple[int, int]:
        block_id, count = longest(self, *arguments)
        return block_id, min(count + 1, len(arguments[-1])) if count else 0

    return longest_and_one


MUTANTS = [
    Mutant("a release loses a reference", "PagedMachine", BlockPool, "release", _lost_reference),
    Mutant("a block is released twice", "PagedMachine", BlockPool, "release", _double_release),
    Mutant("a block that is shared counts once", "PagedMachine", BlockPool, "acquire", _uncounted_share),
    Mutant("a shared block is written in place", "UncachedMachine", PagedMemory, "_num_owners", _sole_owner),
    Mutant("the last copy of a step is dropped", "UncachedMachine", PagedMemory, "take_copies", _last_dropped),
    Mutant("copies run the wrong way", "UncachedMachine", PagedMemory, "take_copies", _turned_around),
    Mutant("a prefix hit is one block too long", "PagedMachine", PagedMemory, "_find_prefix", _one_token_further),
    Mutant("a digest leaves out its parent", "PagedMachine", PagedMemory, "_extend_digests", _parentless),
    Mutant("a block is cached before it is full", "PagedMachine", PagedMemory, "commit", _too_early),
    Mutant("an evicted block can still be found", "PagedMachine", ContentIndex, "remove", _never_forgotten),
    Mutant("a cached block is written in place", "PartialHitMachine", PagedMemory, "_is_part_of_cached", _never),
    Mutant("a partial hit is a token too long", "PartialHitMachine", ChildIndex, "longest", _one_further),
    Mutant("a reused block passes for what it was", "PartialHitMachine", ChildIndex, "remove", _nothing),
    Mutant("a block is copied before it is written", "PartialHitMachine", ChildIndex, "add", _visible_at_once),
    Mutant("a block is not swapped out", "SwappingMachine", PagedMemory, "take_swaps", _last_not_swapped("out")),
    Mutant("a block is not swapped in", "SwappingMachine", PagedMemory, "take_swaps", _last_not_swapped("back")),
    Mutant("buddies are not merged", "BuddyMachine", BuddyAllocator, "free", _unmerged),
    Mutant("an extent takes what is no buddy", "BuddyMachine", BuddyAllocator, "extend", _any_buddy),
    Mutant("the last move of a step is dropped", "BuddyMachine", BuddyMemory, "take_moves", _last_dropped),
    Mutant("a move leaves a slot behind", "BuddyMachine", BuddyMemory, "take_moves", _one_slot_short),
    Mutant("what a move leaves is free before it has moved", "BuddyMachine", BuddyMemory, "grow", _left_too_early),
    Mutant("a move outlives its sequence", "BuddyMachine", BuddyMemory, "free", _move_outlives_its_sequence),
    Mutant("free extents are not merged", "OracleMachine", ExtentAllocator, "free", _unmerged_extents),
    Mutant("an extent is freed twice", "ContiguousMachine", ExtentAllocator, "free", _freed_twice),
    Mutant("an extent is a slot too short", "OracleMachine", ReserveFinal, "first_slots", _one_less),
    Mutant("what ends leaves the batch at once", "StaticMachine", StaticMemory, "free", _given_back_early),
    Mutant("a batch takes in latecomers", "StaticMachine", StaticMemory, "admit", _doors_open),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.bug)
def test_the_random_operations_notice(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutant.owner, mutant.method, mutant.mutate(getattr(mutant.owner, mutant.method)))
    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(getattr(MACHINES, mutant.machine), settings=_SEARCH)


@pytest.mark.parametrize("machine", sorted({mutant.machine for mutant in MUTANTS}))
def test_the_same_examples_pass_without_a_bug(machine: str) -> None:
    run_state_machine_as_test(getattr(MACHINES, machine), settings=_SETTINGS)
