import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest

from pbench.__main__ import main
from pbench.results import Run
from pbench.version import __version__

HEAVY = ("torch", "pandas", "numpy", "plotly", "rich", "pyarrow", "triton", "transformers", "pynvml")

TINY = ["--device", "cpu", "--max-length", "256", "--max-batch-tokens", "256", "--max-running", "32"]


def refused(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    """The one line on stderr with which the command line refuses ``arguments``."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["env", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import json, sys\n"
        "from pbench.__main__ import main\n"
        f"code = main({arguments!r})\n"
        f"print(json.dumps([code, sorted(set({HEAVY!r}) & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]


def test_help_takes_under_half_a_second() -> None:
    durations_s = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "pbench", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # The processor's time, not the clock's: it may have other things to do.
        durations_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if durations_s[-1] < 0.5:
            return
    pytest.fail(f"pbench --help took {min(durations_s):.2f} s")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pbench, version {__version__}\n"


def test_an_unknown_command_and_an_unknown_option_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such command 'rnu'" in refused(capsys, ["rnu"])
    assert "--workload" in refused(capsys, ["run"])
    assert "--limt" in refused(capsys, ["run", "--workload", "x", "--limt", "3"])


def test_an_unknown_workload_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, ["run", "--workload", "chat-shared-promt", "--device", "cpu"])
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "chat-shared-prompt" in message
    assert "sharegpt-lengths" in message


def test_an_unknown_engine_and_an_unknown_model_list_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    workload = ["run", "--workload", "chat-shared-prompt", "--device", "cpu"]
    assert "contiguous:max" in refused(capsys, [*workload, "--engine", "pagde"])
    assert "tiny" in refused(capsys, [*workload, "--model", "tinny"])
    assert "given twice" in refused(capsys, [*workload, "--engine", "paged", "--engine", "paged"])


def test_a_pool_too_small_is_refused_before_anything_starts_and_the_named_size_does(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"input_length": 100, "output_length": 20}\n')
    arguments = ["run", "--workload", str(trace), *TINY, "--out", str(tmp_path / "run"), "--no-report"]
    message = refused(capsys, [*arguments, "--kv-memory", "64KiB"])
    assert "contiguous:max" in message
    assert not (tmp_path / "run").exists()
    smallest = message.split("use --kv-memory ")[1].split()[0]
    assert "too small" in refused(capsys, [*arguments, "--kv-memory", str(int(smallest) - 1)])
    assert main([*arguments, "--kv-memory", smallest]) == 0
    assert Run(tmp_path / "run").result.status == "complete"


def test_a_bad_row_names_file_line_and_field(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"input_length": 10, "output_length": 5}\n{"input_length": -1, "output_length": 5}\n')
    message = refused(capsys, ["run", "--workload", str(trace), "--device", "cpu"])
    assert str(trace) in message
    assert "line 2" in message
    assert "input_length" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kv-memory", "eight"], ["--kv-memory", "'eight'", "8GiB"]),
        (["--set", "shared_tokens"], ["--set", "KEY=VALUE"]),
        (["--set", "nonsense=3"], ["nonsense"]),
        (["--block-size", "12"], ["12", "power of two"]),
        (["--max-length", "100000"], ["100000", "--max-length"]),
        (["--model", "opt-13b"], ["opt-13b"]),
        (["--gpu-memory-utilization", "0.9"], ["--gpu-memory-utilization 0.9", "needs a GPU", "give --kv-memory"]),
        (
            ["--gpu-memory-utilization", "0.9", "--kv-memory", "8MiB"],
            ["--gpu-memory-utilization 0.9 and --kv-memory 8MiB exclude each other"],
        ),
        (["--batch-invariant", "--threads", "2"], ["one thread, not 2", "--threads 1"]),
        (["--gpu-memory-utilization", "1.5"], ["--gpu-memory-utilization", "1.5"]),
    ],
)
def test_options_that_cannot_work_name_the_value_and_the_remedy(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    message = refused(capsys, ["run", "--workload", "chat-shared-prompt", "--device", "cpu", *arguments])
    for word in words:
        assert word in message


def test_a_folder_with_something_in_it_is_not_written_to(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    message = refused(capsys, ["run", "--workload", "chat-shared-prompt", "--device", "cpu", "--out", str(tmp_path)])
    assert "not empty" in message
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_users_text_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, ["run", "--workload", "\x1b[2Jevil", "--device", "cpu"])
    assert "\x1b" not in message


def test_a_run_prints_both_engines_and_says_what_it_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent))
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["run", "--workload", "chat-shared-prompt", *TINY, "--limit", "4", "--kv-memory", "1MiB", "--no-report"]
    arguments += ["--set", "shared_tokens=64", "--set", "own_max=64", "--set", "output_max=80"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "limited to the first 4 of 1,024 requests" in output
    assert "by default" not in output
    assert "paged / contiguous:max" in output
    assert "output tokens/s" in output
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"run:    runs/{folder.name}" in output
    assert Run(folder).result.command == ("pbench", *arguments)


def test_the_report_is_rendered_from_the_finished_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(runs: Sequence[Run], stream: TextIO, *, plotlyjs: str = "inline", bench: object = None) -> None:
        stream.write(f"ünï {[run.result.status for run in runs]} {plotlyjs}")

    monkeypatch.setitem(sys.modules, "pbench.reports.report", SimpleNamespace(render_report=render))
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"input_length": 10, "output_length": 5}\n')
    out = tmp_path / "run"
    assert main(["run", "--workload", str(trace), *TINY, "--engine", "paged", "--out", str(out)]) == 0
    assert (out / "report.html").read_text(encoding="utf-8") == "ünï ['complete'] inline"
    assert "report: " in capsys.readouterr().out


def test_the_default_limit_of_the_cpu_is_said_and_can_be_lifted() -> None:
    from pbench.defaults import CPU_DEFAULTS
    from pbench.settings import RunOptions, resolve

    limited = resolve(RunOptions("chat-shared-prompt", device="cpu"))
    assert limited.workload.num_requests == CPU_DEFAULTS.limit
    assert any("by default on the CPU; --limit 0 plays all" in line for line in limited.lines())
    whole = resolve(RunOptions("chat-shared-prompt", device="cpu", limit=0))
    assert whole.workload.num_requests == 1024
    assert not any("limited" in line for line in whole.lines())


def test_dropped_requests_are_counted_aloud(tmp_path: Path) -> None:
    from pbench.settings import RunOptions, resolve

    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"input_length": 10, "output_length": 5}\n{"input_length": 300, "output_length": 5}\n' * 2)
    settings = resolve(RunOptions(str(trace), device="cpu", max_length=256))
    assert any("dropped of the 4 rows read: 2 longer than 256 tokens" in note for note in settings.notes)


def test_both_engines_get_the_same_whole_blocks() -> None:
    from pbench.settings import RunOptions, resolve

    settings = resolve(RunOptions("chat-shared-prompt", device="cpu", kv_memory="8388700"))
    configs = [engine.config() for engine in settings.engines]
    assert len({config.num_slots * config.slot_bytes for config in configs}) == 1
    assert {config.kv_memory_bytes for config in configs} == {8 * 2**20}


def test_a_measured_pool_is_every_engine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    from pbench import settings
    from pbench.job import EngineOptions

    def measure(engine: EngineOptions, gpu_memory_utilization: float) -> int:
        assert (engine.device, gpu_memory_utilization) == ("cuda", 0.8)
        return 96 * 2**20

    monkeypatch.setattr(settings, "_resolve_device", lambda device: "cuda")
    monkeypatch.setattr(settings, "measure_pool_bytes", measure)
    options = settings.RunOptions("chat-shared-prompt", model="tiny", limit=4, gpu_memory_utilization=0.8)
    engines = settings.resolve(options).engines
    assert [engine.kv_memory_bytes for engine in engines] == [96 * 2**20] * 2
    assert {engine.host_kv_memory_bytes for engine in engines} == {96 * 2**20}


def test_a_pool_that_cannot_be_measured_says_why() -> None:
    from dataclasses import replace

    import torch

    from pbench.errors import UsageError
    from pbench.pool_probe import measure_pool_bytes
    from pbench.settings import RunOptions, resolve

    if torch.cuda.is_available():
        pytest.skip("here it can be")
    engine = resolve(RunOptions("chat-shared-prompt", device="cpu")).engines[0]
    with pytest.raises(UsageError, match="could not be measured: device 'cuda' is not available"):
        measure_pool_bytes(replace(engine, device="cuda"), 0.9)


@pytest.mark.gpu
def test_the_pool_of_a_run_is_measured_in_a_process_of_its_own() -> None:
    from pbench.settings import RunOptions, resolve

    options = RunOptions("chat-shared-prompt", model="qwen3-0.6b", limit=4, gpu_memory_utilization=0.5)
    sizes = {engine.kv_memory_bytes for engine in resolve(options).engines}
    assert len(sizes) == 1
    assert sizes.pop() > 2**30
