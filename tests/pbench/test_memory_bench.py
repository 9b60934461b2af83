"""The scale benchmark: it measures what it says, and its verdict is its exit code."""

import json
from pathlib import Path

import pytest

from pbench.__main__ import main
from pbench.engine.paged_memory import PagedMemory
from pbench.memory_bench import LAYOUTS, OPERATIONS, BenchPlan, bench_memory

SMALL = ["--pool", "500", "--pool", "1500", "--prompt-tokens", "1600", "--repeats", "2"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_operation_has_a_cost_in_every_pool(layout: str) -> None:
    plan = BenchPlan(pool_sizes=(500, 700, 900), prompt_tokens=1600, num_repeats=2)
    costs = bench_memory(plan, layout)
    assert [cost.operation for cost in costs] == list(OPERATIONS)
    for cost in costs:
        assert len(cost.ns_per_block) == 3
        assert min(cost.ns_per_block) > 0
        assert cost.ratio == cost.ns_per_block[2] / cost.ns_per_block[0]


def test_a_cost_in_proportion_to_the_pool_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fork = PagedMemory.fork

    def fork_in_the_whole_pool(self: PagedMemory, parent: object, child: object) -> None:
        sum(block_id for block_id in range(100 * self.num_blocks))
        fork(self, parent, child)  # type: ignore[arg-type]

    monkeypatch.setattr(PagedMemory, "fork", fork_in_the_whole_pool)
    assert main(["memory-bench", *SMALL, "--limit", "2"]) == 1
    assert "fork" in capsys.readouterr().err


def test_the_costs_are_written(tmp_path: Path) -> None:
    out = tmp_path / "costs.json"
    assert main(["memory-bench", *SMALL, "--limit", "1000", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    assert document["plan"]["pool_sizes"] == [500, 1500]
    assert {(cost["layout"], cost["operation"]) for cost in document["costs"]} == {
        (layout, operation) for layout in LAYOUTS for operation in OPERATIONS
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pool", "500"], "two or more sizes"),
        (["--pool", "900", "--pool", "500"], "the smallest first"),
        (["--pool", "100", "--pool", "500", "--prompt-tokens", "1600"], "at least"),
    ],
)
def test_pools_that_cannot_be_compared_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["memory-bench", *arguments]) == 2
    assert words in capsys.readouterr().err
