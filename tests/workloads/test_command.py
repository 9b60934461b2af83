import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pbench.__main__ import main
from pbench.workload_view import bar, sparkline
from pbench.workloads.catalogue import load_workload, workload_names
from pbench.workloads.readers import FORMATS

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["workloads", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["workloads", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    return captured.err


def test_list_names_every_workload_and_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    words = said(capsys, "list").split()
    assert set(workload_names()) <= set(words)
    assert {each.name for each in FORMATS} <= set(words)


@pytest.mark.parametrize("name", workload_names())
def test_show_tells_what_a_built_in_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "show", name, "--limit", "40")
    workload = load_workload(name, limit=40)
    assert workload.sha256 in out
    assert f"arrivals {workload.arrivals}" in out
    assert all(parameter in out for parameter in workload.parameters)


def test_show_tells_what_sharing_saves(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "show", "chat-shared-prompt", "--set", "num_requests=100")
    assert "1,024 tokens of 100 requests" in out
    workload = load_workload("chat-shared-prompt", overrides={"num_requests": "100"})
    saved = 100 * 99 * 1024 / workload.total_input_tokens
    assert f"sharing saves {saved:.2f} % at most" in out
    assert "there is nothing to share" in said(capsys, "show", "uniform")


def test_show_prints_the_known_ideal_hits_of_mooncake(mooncake_trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "show", str(mooncake_trace), "--arrivals", "recorded").splitlines()
    (every,) = (line.split() for line in lines if line.startswith("every block"))
    (full,) = (line.split() for line in lines if line.startswith("full blocks"))
    assert [word for word in every if word[0].isdigit()] == ["4.45", "21.12", "35.46", "36.64"]
    assert [word for word in full if word[0].isdigit()] == ["4.68", "22.42", "37.10", "38.19"]
    assert any("--dejitter" in line for line in lines)


def test_show_takes_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--limit 50 --sample 20 --seed 3 --max-length 1500 --arrivals poisson:4 --rate-scale 2 --set input_max=300"
    )
    out = said(capsys, "show", "uniform", *options.split(), "--block-size", "32", "--cache-blocks", "5")
    same = load_workload(
        "uniform",
        limit=50,
        sample=20,
        seed=3,
        max_length=1500,
        arrivals="poisson:4",
        rate_scale=2.0,
        overrides={"input_max": "300"},
    )
    assert same.sha256 in out


def test_show_says_what_was_dropped(capsys: pytest.CaptureFixture[str], write: Write) -> None:
    rows = "".join(f'{{"input_length": {length}, "output_length": 1}}\n' for length in (5, 500, 0))
    out = said(capsys, "show", str(write(rows)), "--max-length", "50")
    assert "1 of 3 rows read" in out
    assert "1 too long, 1 without input or output tokens" in out


def test_show_lets_nothing_in_a_name_act_on_the_terminal(capsys: pytest.CaptureFixture[str], write: Write) -> None:
    path = write('{"input_length": 5, "output_length": 1}\n', "[bold]x\x1b[31m.jsonl")
    out = said(capsys, "show", str(path))
    assert "\x1b" not in out
    assert "[bold]x\\x1b[31m.jsonl" in out


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "did you mean 'output_max'?" in refused(capsys, "show", "uniform", "--set", "output_mxa=5")
    assert "is not KEY=VALUE" in refused(capsys, "show", "uniform", "--set", "output_max")
    assert "did you mean 'uniform'?" in refused(capsys, "show", "unifrm")
    assert "does not exist" in refused(capsys, "show", str(tmp_path / "no.csv"))
    assert "needs arrivals in time" in refused(capsys, "show", "uniform", "--rate-scale", "2")


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_import_writes_what_plays_the_same(
    name: str, capsys: pytest.CaptureFixture[str], write: Write, small_files: dict[str, str], tmp_path: Path
) -> None:
    source, out = write(small_files["mooncake"], "trace.jsonl"), tmp_path / name
    told = said(capsys, "import", str(source), str(out), "--licence", "CC0-1.0")
    recorded = load_workload(str(source), arrivals="recorded")
    assert recorded.sha256 in told
    assert load_workload(str(out), arrivals="recorded").sha256 == recorded.sha256
    raw = out.read_bytes()
    header = json.loads((gzip.decompress(raw) if name.endswith("gz") else raw).splitlines()[0])
    assert (header["source"], header["licence"], header["sha256"]) == ("trace.jsonl", "CC0-1.0", recorded.sha256)


def test_import_bakes_in_the_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    said(capsys, "import", "uniform", str(out), "--limit", "9", "--seed", "2", "--arrivals", "poisson:3")
    same = load_workload("uniform", limit=9, seed=2, arrivals="poisson:3")
    assert load_workload(str(out), arrivals="recorded").sha256 == same.sha256


def test_the_same_import_is_the_same_bytes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outs = [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"]
    for out in outs:
        said(capsys, "import", "chat-multi-turn", str(out), "--limit", "20")
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_export_writes_a_mooncake_trace_and_says_what_it_keeps(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "uniform"  # a built-in's name: the file is meant all the same
    told = said(capsys, "export", "few-shot", str(out), "--set", "shots=5", "--limit", "100")
    assert "prefixes share 0.00 % of the prompt tokens there, and 9" in told  # 341 tokens are no block of 512
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 100
    assert rows[0].keys() == {"timestamp", "input_length", "output_length", "hash_ids"}


def test_nothing_is_replaced_unasked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("precious")
    for command in ("import", "export"):
        assert "exists; choose another name, or --force to replace it" in refused(capsys, command, "uniform", str(out))
    assert out.read_text() == "precious"
    said(capsys, "import", "uniform", str(out), "--limit", "3", "--force")
    assert load_workload(str(out)).num_requests == 3
    assert "there is no folder" in refused(capsys, "import", "uniform", str(tmp_path / "no" / "out.jsonl"))


def test_a_failed_import_leaves_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused(capsys, "export", "parallel-sampling", str(tmp_path / "out.jsonl"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("share", "drawn"), [(0, ""), (1, "████"), (0.5, "██"), (0.53125, "██▏"), (1e-9, "▏")])
def test_bars_are_as_long_as_their_share(share: float, drawn: str) -> None:
    assert bar(share, 4) == drawn


def test_sparklines_are_as_high_as_their_counts() -> None:
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"
    assert sparkline([0, 1000, 1]) == " █▁"
    assert sparkline([]) == ""
