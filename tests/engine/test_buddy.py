"""The buddy allocator under random operations, and what makes it one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pbench.engine.buddy import BuddyAllocator, next_power_of_two


class BuddyMachine(RuleBasedStateMachine):
    """The model is the set of slots that are free: what fits is decided from it alone."""

    @initialize(num_slots=st.integers(1, 100))
    def make(self, num_slots: int) -> None:
        self.buddies = BuddyAllocator(num_slots)
        self.free_slots = set(range(num_slots))
        self.held: list[tuple[int, int]] = []

    def fitting(self, length: int) -> list[int]:
        """Every aligned place that is free and lies within one tile of the pool."""
        num_slots = self.buddies.num_slots
        starts = range(0, num_slots - length + 1, length)
        return [start for start in starts if self.free_slots.issuperset(range(start, start + length))]

    @rule(order=st.integers(0, 7))
    def allocate(self, order: int) -> None:
        length = 1 << order
        fitting = self.fitting(length)
        start = self.buddies.allocate(length)
        assert start == (fitting[0] if fitting else None), "not the leftmost place that fits"
        if start is not None:
            self.free_slots -= set(range(start, start + length))
            self.held.append((start, length))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), num_doublings=st.integers(1, 3))
    def extend(self, data: st.DataObject, num_doublings: int) -> None:
        start, length = data.draw(st.sampled_from(self.held))
        new_length = length << num_doublings
        added = set(range(start + length, start + new_length))
        can_extend = start % new_length == 0 and self.free_slots.issuperset(added)
        assert self.buddies.extend(start, length, new_length) == can_extend
        if can_extend:
            self.free_slots -= added
            self.held[self.held.index((start, length))] = (start, new_length)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        start, length = extent = data.draw(st.sampled_from(self.held))
        self.held.remove(extent)
        self.free_slots |= set(range(start, start + length))
        self.buddies.free(start, length)
        with pytest.raises(AssertionError, match="free already"):
            self.buddies.free(start, length)

    @invariant()
    def is_whole(self) -> None:
        self.buddies.check_integrity(self.held)
        assert self.buddies.num_free == len(self.free_slots)
        lengths = [1 << order for order in range(8) if self.fitting(1 << order)]
        assert self.buddies.largest_free == max(lengths, default=0)

    def teardown(self) -> None:
        for start, length in self.held:
            self.buddies.free(start, length)
        self.buddies.check_integrity([])
        assert self.buddies.largest_free == 1 << (self.buddies.num_slots.bit_length() - 1), "not merged again"


TestBuddyAllocator = BuddyMachine.TestCase
TestBuddyAllocator.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.integers(1, 10**9))
def test_the_next_power_of_two_is_the_smallest(number: int) -> None:
    power = next_power_of_two(number)
    assert power & (power - 1) == 0
    assert power // 2 < number <= power


@pytest.mark.parametrize(
    ("free", "held"),
    [
        ([[0, 1], [], []], [(2, 2)]),  # two free buddies that were not merged
        ([[0], [], []], [(0, 1), (1, 1), (2, 2)]),  # free and held at once
        ([[], [], []], [(0, 2)]),  # lost
        ([[], [], []], [(0, 1), (1, 2), (3, 1)]),  # not aligned
    ],
)
def test_the_audit_sees_planted_damage(free: list[list[int]], held: list[tuple[int, int]]) -> None:
    buddies = BuddyAllocator(4)
    buddies._starts_by_order = free
    buddies.num_free = sum(len(starts) << order for order, starts in enumerate(free))
    with pytest.raises(AssertionError):
        buddies.check_integrity(held)


def test_a_length_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(AssertionError, match="3 is not a power of two"):
        BuddyAllocator(8).allocate(3)
