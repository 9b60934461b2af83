"""Eviction policies, and who may share a prefix."""

import pytest

from pbench.engine.eviction import EVICTION_POLICIES
from pbench.engine.paged_memory import PagedMemory
from pbench.engine.request import Request, SamplingParams
from pbench.engine.sequence import Sequence


def run_to_end(memory: PagedMemory, seq: Sequence) -> int:
    """Admit, compute and free; returns the tokens hit."""
    num_hits = memory.admit(seq, seq.num_tokens, 0)
    assert num_hits is not None
    seq.num_computed_tokens = num_hits
    memory.grow(seq, seq.num_tokens - num_hits)
    seq.num_computed_tokens = seq.num_tokens
    memory.commit(seq)
    memory.check_integrity()
    memory.free(seq)
    memory.check_integrity()
    return num_hits


def sequence(seq_id: int, token: int, salt: str = "") -> Sequence:
    """Two blocks of four: the second only leaves a token to compute."""
    return Sequence(seq_id, Request(seq_id, [token] * 5, SamplingParams(max_tokens=1), cache_salt=salt))


@pytest.mark.parametrize("name", list(EVICTION_POLICIES))
def test_policies_agree_with_a_naive_list(name: str) -> None:
    policy = EVICTION_POLICIES[name]()
    policy.register([3, 1, 2])
    for block_id in (1, 3, 2):
        policy.add([block_id])
    policy.remove(1)
    policy.add([1])
    assert (len(policy), sorted(policy), 1 in policy, 7 in policy) == (3, [1, 2, 3], True, False)
    assert policy.pop(2) == ([3, 2] if name == "lru" else [3, 1])
    assert list(policy) == ([1] if name == "lru" else [2])


@pytest.mark.parametrize(("name", "num_hits_of_the_old"), [("lru", 4), ("fifo", 0)])
def test_what_was_used_again_survives_under_lru_only(name: str, num_hits_of_the_old: int) -> None:
    memory = PagedMemory(num_blocks=4, block_size=4, watermark=0.0, eviction=name)
    for seq_id, token in enumerate((1, 2, 1, 3, 4)):  # 1 is learnt first, and used again after 2
        run_to_end(memory, sequence(seq_id, token))
    assert run_to_end(memory, sequence(9, 1)) == num_hits_of_the_old


def test_a_tenant_never_hits_what_another_computed() -> None:
    memory = PagedMemory(num_blocks=16, block_size=4)
    assert run_to_end(memory, sequence(0, 1, salt="a")) == 0
    assert run_to_end(memory, sequence(1, 1, salt="b")) == 0
    assert run_to_end(memory, sequence(2, 1)) == 0
    assert [run_to_end(memory, sequence(3 + i, 1, salt)) for i, salt in enumerate(["a", "b", ""])] == [4, 4, 4]


def test_a_reset_forgets_every_prefix() -> None:
    memory = PagedMemory(num_blocks=16, block_size=4)
    run_to_end(memory, sequence(0, 1))
    memory.reset()
    assert run_to_end(memory, sequence(1, 1)) == 0
