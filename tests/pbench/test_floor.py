"""``pbench floor``: its figures are recomputed from the tables, and what it names is what lost the most."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pbench.__main__ import main
from pbench.floor.engine_floor import EngineFloor, Stretch, engine_floor
from pbench.floor.view import WRITERS, sentence
from pbench.machine_limits import known_limits
from pbench.reports.subjects import load_subjects
from pbench.results import (
    DEVICE_COLUMNS,
    REQUEST_COLUMNS,
    STEP_COLUMNS,
    EngineResult,
    PhaseTime,
    Repeat,
    Run,
    RunResult,
    write_result,
    write_table,
)

KINDS: dict[str, Callable[[pd.DataFrame], "pd.Series[bool]"]] = {
    "only decodes": lambda steps: steps.num_prefill_tokens.eq(0) & steps.num_decode_tokens.gt(0),
    "decodes and prompts": lambda steps: steps.num_prefill_tokens.gt(0) & steps.num_decode_tokens.gt(0),
    "only prompts": lambda steps: steps.num_prefill_tokens.gt(0) & steps.num_decode_tokens.eq(0),
}
CEILINGS = {"device": "a machine", "copy_bytes_per_s": 1e9, "matrix_flops_per_s": 1e10}
COST = {"weights_bytes": 4_000_000, "token_flops": 1_000_000, "sample_flops": 500_000, "pair_flops": 1000}
SLOT_BYTES, BLOCK_SIZE = 1000, 16


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of prompts that share a prefix, on a machine whose every step takes 200 us beyond its floor."""
    folder = tmp_path_factory.mktemp("simulated") / "run"
    arguments = "--workload chat-shared-prompt --limit 40 --model llama-1b --kv-memory 256MiB --step-overhead 200"
    assert main(["simulate", *arguments.split(), "--arrivals", "poisson:3", "--out", str(folder)]) == 0
    return folder


def recomputed(folder: Path, spec: str) -> dict[str, dict[str, float]]:
    """The figures from the files alone, step by step."""
    document = json.loads((folder / "run.json").read_text())
    (engine,) = (one for one in document["engines"] if one["spec"] == spec)
    hardware, cost, slot_bytes = engine["config"]["hardware"], engine["cost"], engine["pool"]["slot_bytes"]
    steps = pd.read_parquet(folder / "steps.parquet").query("engine == @spec")
    figures = {}
    for name, is_of_kind in KINDS.items():
        chosen = steps[is_of_kind(steps)]
        figures[name] = dict.fromkeys(("num_steps", "time_s", "floor_s", "weights_s", "kv_s", "arithmetic_s"), 0.0)
        for step in chosen.itertuples():
            context = step.token_state + step.shared_saved
            held = step.token_state + step.reserved + step.internal
            num_read = min(context, held) if spec == "paged" else context
            num_computed = step.num_prefill_tokens + step.num_decode_tokens
            num_copied = step.num_copied_blocks * (engine["pool"]["block_size"] if spec == "paged" else 0)
            kv_bytes = (num_read + num_computed + 2 * (num_copied + step.num_moved_slots)) * slot_bytes
            flops = (
                cost["token_flops"] * num_computed
                + cost["sample_flops"] * step.num_output_tokens
                + cost["pair_flops"] * context
            )
            weights_s = cost["weights_bytes"] / hardware["bandwidth_bytes_per_s"]
            kv_s, arithmetic_s = kv_bytes / hardware["bandwidth_bytes_per_s"], flops / hardware["flops_per_s"]
            for key, value in {
                "num_steps": 1,
                "time_s": (step.end_ns - step.start_ns) / 1e9,
                "floor_s": max(weights_s + kv_s, arithmetic_s),
                "weights_s": weights_s,
                "kv_s": kv_s,
                "arithmetic_s": arithmetic_s,
            }.items():
                figures[name][key] += value
    return figures


def floors_of(folder: Path, kernels: Path | None = None) -> list[EngineFloor]:
    runs = [Run(folder)]
    found = [engine_floor(subject, known_limits(runs, kernels)) for subject in load_subjects(runs)]
    return [floor for floor in found if floor is not None]


@pytest.mark.parametrize("spec", ["paged", "contiguous:max"])
def test_the_floor_of_every_kind_of_steps_is_that_of_the_tables(simulated: Path, spec: str) -> None:
    (floor,) = (one for one in floors_of(simulated) if one.engine == spec)
    expected = recomputed(simulated, spec)
    found = {stretch.name: stretch for stretch in floor.stretches}
    for name, figures in expected.items():
        assert figures["num_steps"] > 0, f"there were to be steps of {name}"
        for key, value in figures.items():
            assert getattr(found[name], key) == pytest.approx(value, rel=1e-9), (name, key)
    steps = pd.read_parquet(simulated / "steps.parquet").query("engine == @spec")
    assert floor.whole.time_s == pytest.approx(steps.end_ns.max() / 1e9)
    assert floor.whole.num_steps == len(steps)
    assert found["outside steps"].time_s > 0, "the arrivals were to leave time between steps"


def test_what_a_simulated_machine_adds_to_decodes_is_their_gap(simulated: Path) -> None:
    for floor in floors_of(simulated):
        (decodes,) = (stretch for stretch in floor.stretches if stretch.name == "only decodes")
        assert decodes.gap_s == pytest.approx(decodes.num_steps * 200e-6, rel=1e-4)


@pytest.mark.parametrize(
    ("weights_s", "kv_s", "arithmetic_s", "bound_by"),
    [(3.0, 2.0, 4.0, "weights"), (2.0, 3.0, 4.0, "KV"), (3.0, 2.0, 6.0, "arithmetic")],
)
def test_bytes_bind_together(weights_s: float, kv_s: float, arithmetic_s: float, bound_by: str) -> None:
    assert Stretch("a", 1, 9.0, 5.0, weights_s, kv_s, arithmetic_s).bound_by == bound_by


def test_sharing_is_counted(simulated: Path) -> None:
    """KV that sequences share is read once: without a prefix cache the same steps have a higher floor."""
    subject = load_subjects([Run(simulated)])[0]
    unshared = replace(
        subject, engine=replace(subject.engine, config=dict(subject.engine.config) | {"is_prefix_cached": False})
    )
    bench = known_limits([Run(simulated)])
    floor, without = engine_floor(subject, bench), engine_floor(unshared, bench)
    assert floor is not None
    assert without is not None
    assert floor.whole.kv_s < 0.9 * without.whole.kv_s


def step(start_ms: float, end_ms: float, *, prompts: int = 0, decodes: int = 0, context: int = 0) -> dict[str, Any]:
    return dict.fromkeys(STEP_COLUMNS, 0) | {
        "engine": "paged",
        "repeat": 1,
        "start_ns": int(start_ms * 1e6),
        "end_ns": int(end_ms * 1e6),
        "num_prefill_tokens": prompts,
        "num_decode_tokens": decodes,
        "num_output_tokens": decodes,
        "token_state": context,
        "is_memory_blocked": False,
    }


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    path = tmp_path / "kernels.json"
    path.write_text(json.dumps({"ceilings": CEILINGS, "measurements": []}))
    return path


def write_run(folder: Path, steps: list[dict[str, Any]], phases: tuple[PhaseTime, ...] = (), **fields: Any) -> Path:
    folder.mkdir()
    engine = EngineResult(
        "paged",
        "complete",
        config={"memory": "paged"},
        pool={"slot_bytes": SLOT_BYTES, "block_size": BLOCK_SIZE},
        cost=COST,
        repeats=(Repeat(1, "complete", phases=phases),),
    )
    result = RunResult(
        run_id="by-hand",
        created_at="",
        status="complete",
        command=(),
        workload={"name": "a|workload"},
        config={},
        environment={"gpu": {"name": "a machine"}},
        engines=(engine,),
    )
    write_result(folder, replace(result, **fields))
    write_table(folder / "steps.parquet", steps, STEP_COLUMNS)
    write_table(folder / "requests.parquet", [], REQUEST_COLUMNS)
    write_table(folder / "device.parquet", [], DEVICE_COLUMNS)
    return folder


PROMPT = step(0, 200, prompts=1000, context=1000)  # at 1 GB/s and 10 GFLOP/s: 100.1 ms of arithmetic, 4 + 2 ms of bytes
DECODES = [step(210 + 20 * index, 230 + 20 * index, decodes=1, context=5999) for index in range(3)]  # 4 + 6 ms each


def test_by_hand(tmp_path: Path, kernels: Path) -> None:
    (floor,) = floors_of(write_run(tmp_path / "run", [PROMPT, *DECODES]), kernels)
    decodes, prompts, outside = floor.stretches
    assert (prompts.name, prompts.num_steps, prompts.bound_by) == ("only prompts", 1, "arithmetic")
    assert [prompts.time_s, prompts.floor_s, prompts.gap_s] == pytest.approx([0.2, 0.1001, 0.0999])
    assert [prompts.weights_s, prompts.kv_s, prompts.arithmetic_s] == pytest.approx([0.004, 0.002, 0.1001])
    assert (decodes.name, decodes.num_steps, decodes.bound_by) == ("only decodes", 3, "KV")
    assert [decodes.time_s, decodes.floor_s, decodes.gap_s] == pytest.approx([0.06, 0.03, 0.03])
    assert (outside.name, outside.bound_by) == ("outside steps", None)
    assert outside.time_s == pytest.approx(0.01)
    assert floor.whole.time_s == pytest.approx(0.27)
    assert floor.whole.gap_s == pytest.approx(0.27 - 0.1301)
    assert sentence(floor) == (
        "paged: 140 ms of 270 ms (51.8 %) are above the floor. The largest gap is 99.9 ms in 1 step with only"
        " prompts: 200 ms each, and 100 ms at the floor, set by arithmetic."
    )


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([PROMPT, *DECODES], "only prompts"),
        ([PROMPT, *(step(200 + 90 * n, 290 + 90 * n, decodes=1, context=5999) for n in range(3))], "only decodes"),
        ([step(0, 900, prompts=10, decodes=1, context=10), *DECODES], "decodes and prompts"),
        ([step(500, 510, decodes=1, context=10)], "outside steps"),
    ],
)
def test_the_largest_gap_is_named(tmp_path: Path, kernels: Path, steps: list[dict[str, Any]], name: str) -> None:
    (floor,) = floors_of(write_run(tmp_path / "run", steps), kernels)
    assert floor.largest_gap.name == name
    assert name in sentence(floor)


def test_phases_are_shares_of_the_wall_time_and_the_longest_is_told(tmp_path: Path, kernels: Path) -> None:
    phases = (
        PhaseTime("host", "all", "launch", 2.7, 1.0),
        PhaseTime("host", "all", "wait", 27.0, 10.0),
        PhaseTime("host", "all", "outside", 500.0, 89.0),
        PhaseTime("device", "replayed", "replay", 20.0, 95.0, 30),
        PhaseTime("device", "launched", "attention", 100.0, 60.0, 2),
    )
    (floor,) = floors_of(write_run(tmp_path / "run", [PROMPT, *DECODES], phases), kernels)
    assert [(part.phase, part.num_steps) for part in floor.phases] == [
        ("launch", 4),
        ("wait", 4),
        ("replay", 30),
        ("attention", 2),
    ]
    assert floor.phases[0].share_pct == pytest.approx(100 * 4 * 2.7 / 270)
    assert sentence(floor).endswith(
        "The host was in wait for 40 % of the time; within replayed steps the device was in replay for 95 %."
    )


def test_what_a_replay_hides_is_told_with_the_remedy(tmp_path: Path, kernels: Path) -> None:
    for phase, is_told in (("replay", True), ("attention", False)):
        phases = (PhaseTime("device", "replayed", phase, 20.0, 95.0, 30),)
        stream = StringIO()
        WRITERS["table"](floors_of(write_run(tmp_path / phase, [PROMPT], phases), kernels), stream)
        assert ("--no-cuda-graphs" in stream.getvalue()) == is_told


def test_steps_faster_than_the_ceilings_allow_are_not_hidden(tmp_path: Path, kernels: Path) -> None:
    (floor,) = floors_of(write_run(tmp_path / "run", [step(0, 1, prompts=1000, context=1000)]), kernels)
    assert floor.whole.gap_s < 0
    assert "the ceilings are too low" in sentence(floor)


@pytest.mark.parametrize("format_name", ["table", "markdown", "json"])
def test_every_format_says_it_all(tmp_path: Path, kernels: Path, format_name: str) -> None:
    phases = (PhaseTime("host", "all", "wait", 27.0, 10.0),)
    floors = floors_of(write_run(tmp_path / "run", [PROMPT, *DECODES], phases), kernels)
    stream = StringIO()
    WRITERS[format_name](floors, stream)
    text = stream.getvalue()
    if format_name == "json":
        (document,) = json.loads(text)
        assert document["sentence"] == sentence(floors[0])
        assert document["largest_gap"] == "only prompts"
        assert document["whole"]["floor_s"] == pytest.approx(0.1301)
        assert document["ceilings"]["bytes_per_s"] == 1e9
        assert [stretch["bound_by"] for stretch in document["stretches"]] == ["KV", "arithmetic", None]
        return
    workload = "a|workload" if format_name == "table" else r"a\|workload"
    for words in (workload, "only decodes", "99.9 ms", "arithmetic", "wait", sentence(floors[0]), "by-hand"):
        assert words in text


def test_the_command_writes_where_told(tmp_path: Path, kernels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_run(tmp_path / "run", [PROMPT, *DECODES]), tmp_path / "floor.json"
    arguments = ["floor", str(folder), "--kernels", str(kernels), "--format", "json"]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "floor.json" in capsys.readouterr().out
    assert main(arguments) == 0
    assert capsys.readouterr().out == out.read_text()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("environment", [{"gpu": {"name": "another"}}, {"cpu": {"model": "a\x1b[2Jchip"}}, {}])
def test_a_machine_of_which_nothing_is_known_is_refused_with_the_remedy(
    tmp_path: Path, kernels: Path, capsys: pytest.CaptureFixture[str], environment: Mapping[str, Any]
) -> None:
    folder = write_run(tmp_path / "run", [PROMPT], environment=environment)
    message = refused(["floor", str(folder), "--kernels", str(kernels)], capsys)
    assert "pbench kernels --json FILE" in message
    assert "\x1b" not in message


def test_engines_without_steps_are_left_out_and_alone_refused(
    tmp_path: Path, kernels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = EngineResult("transformers", "complete")
    both = write_run(tmp_path / "both", [PROMPT])
    write_result(both, replace(Run(both).result, engines=(*Run(both).result.engines, other)))
    assert main(["floor", str(both), "--kernels", str(kernels)]) == 0
    assert "transformers has no steps whose cost is known: left out" in capsys.readouterr().err
    alone = write_run(tmp_path / "alone", [], engines=(other,))
    assert "no engine of these runs" in refused(["floor", str(alone), "--kernels", str(kernels)], capsys)


def test_a_path_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a run folder" in refused(["floor", str(tmp_path)], capsys)
