import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbench.workloads.catalogue import load_workload
from pbench.workloads.errors import WorkloadError
from pbench.workloads.request import Segment, WorkloadRequest
from pbench.workloads.tokens import prompt_token_ids

SEGMENTS = st.lists(st.builds(Segment, st.integers(0, 5), st.integers(1, 40)), max_size=6)


def request(*segments: tuple[int, int]) -> WorkloadRequest:
    parts = tuple(Segment(*segment) for segment in segments)
    return WorkloadRequest(0, 0.0, sum(part.length for part in parts), 1, parts)


def test_tokens_never_change() -> None:
    assert prompt_token_ids(request((0, 6), (7, 2)), vocab_size=1000, seed=0) == [
        276,
        310,
        206,
        457,
        430,
        375,
        117,
        386,
    ]


@given(SEGMENTS, st.integers(1, 200_000), st.integers(0, 3))
def test_a_prompt_has_its_length_and_stays_in_the_vocabulary(
    segments: list[Segment], vocab_size: int, seed: int
) -> None:
    asked = request(*segments)
    token_ids = prompt_token_ids(asked, vocab_size=vocab_size, seed=seed)
    assert len(token_ids) == asked.input_length
    assert all(type(token_id) is int and 0 <= token_id < vocab_size for token_id in token_ids)


@given(st.integers(0, 2**40), st.integers(1, 99), st.integers(1, 99), st.integers(0, 3))
def test_a_shorter_segment_is_the_beginning_of_a_longer_one(key: int, short: int, long: int, seed: int) -> None:
    short, long = sorted((short, long))
    whole = prompt_token_ids(request((key, long)), vocab_size=500, seed=seed)
    assert prompt_token_ids(request((key, short)), vocab_size=500, seed=seed) == whole[:short]


def test_keys_and_seeds_name_different_tokens() -> None:
    prompts = {
        tuple(prompt_token_ids(request((key, 50)), vocab_size=50_000, seed=seed)) for key in range(5) for seed in (0, 1)
    }
    assert len(prompts) == 10


def test_tokens_use_the_whole_vocabulary() -> None:
    counts = np.bincount(prompt_token_ids(request((3, 20_000)), vocab_size=16, seed=0), minlength=16)
    assert counts.min() > 20_000 / 16 * 0.85
    assert counts.max() < 20_000 / 16 * 1.15


def test_what_a_caller_does_to_a_prompt_does_not_reach_the_next_one() -> None:
    asked = request((0, 5))
    first = prompt_token_ids(asked, vocab_size=9, seed=0)
    first.append(-1)
    assert len(prompt_token_ids(asked, vocab_size=9, seed=0)) == 5


def test_explicit_ids_are_returned_as_they_are() -> None:
    explicit = WorkloadRequest(4, 0.0, 3, 1, (), (5, 0, 9))
    assert prompt_token_ids(explicit, vocab_size=10, seed=7) == [5, 0, 9]
    with pytest.raises(WorkloadError, match=r"request 4 has token id 9 in its prompt.* vocabulary ends at 8"):
        prompt_token_ids(explicit, vocab_size=9, seed=7)


def test_chats_begin_with_the_same_tokens_and_differ_after_them() -> None:
    requests = load_workload("chat-shared-prompt", limit=20).requests
    prompts = [prompt_token_ids(each, vocab_size=32_000, seed=0) for each in requests]
    assert len({tuple(prompt[:1024]) for prompt in prompts}) == 1
    assert len({tuple(prompt[1024:1040]) for prompt in prompts}) == 20
