import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbench.workloads.builtin import BUILT_INS
from pbench.workloads.catalogue import load_workload
from pbench.workloads.errors import WorkloadError
from pbench.workloads.ideal_cache import ideal_hits
from pbench.workloads.provenance import provenance
from pbench.workloads.workload import Workload
from pbench.workloads.writers.mooncake import mooncake_lines
from pbench.workloads.writers.native import native_lines

Write = Callable[..., Path]

SEGMENTS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 40)), min_size=1, max_size=4)
ROWS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"output_length": st.integers(1, 9), "input_length": st.integers(1, 99)}),
        st.fixed_dictionaries(
            {
                "output_length": st.integers(1, 9),
                "segments": SEGMENTS,
                "n": st.integers(1, 3),
                "beam_width": st.sampled_from([1, 4]),
            }
        ),
        st.fixed_dictionaries(
            {"output_length": st.integers(1, 9), "prompt_token_ids": st.lists(st.integers(0, 9), min_size=1)}
        ),
    ),
    min_size=1,
    max_size=6,
)
TIMES_NS = st.lists(st.integers(0, 2**51), min_size=6, max_size=6).map(sorted)

rewriting = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def native(rows: list[dict[str, object]], times_ns: list[int] | None) -> str:
    lines = []
    for index, row in enumerate(rows):
        whole = dict(row)
        if "segments" in row:
            whole["input_length"] = sum(length for _, length in row["segments"])  # type: ignore[attr-defined]
        if times_ns is not None:
            whole["arrival_s"] = times_ns[index] / 1e9
        lines.append(json.dumps(whole) + "\n")
    return "".join(lines)


def rewritten(write: Write, lines: Iterator[str], **options: str) -> Workload:
    return load_workload(str(write("".join(lines), "rewritten.dat")), **options)  # type: ignore[arg-type]


@rewriting
@given(ROWS, st.none() | TIMES_NS)
def test_our_own_format_loses_nothing(write: Write, rows: list[dict[str, object]], times_ns: list[int] | None) -> None:
    options = {} if times_ns is None else {"arrivals": "recorded"}
    workload = load_workload(str(write(native(rows, times_ns))), **options)  # type: ignore[arg-type]
    again = rewritten(write, native_lines(workload, {}), **options)
    assert again.sha256 == workload.sha256
    assert list(again.requests) == list(workload.requests)


@pytest.mark.parametrize("name", ["azure", "mooncake", "bailian", "burstgpt", "sharegpt", "pbench"])
def test_every_format_can_be_written_as_ours(name: str, small_files: dict[str, str], write: Write) -> None:
    options = {} if name == "sharegpt" else {"arrivals": "recorded"}
    workload = load_workload(str(write(small_files[name])), **options)  # type: ignore[arg-type]
    lines = list(native_lines(workload, provenance(workload, licence=None)))
    assert rewritten(write, iter(lines), **options).sha256 == workload.sha256
    header, first = json.loads(lines[0]), json.loads(lines[1])
    assert header["sha256"] == workload.sha256
    assert ("prefix_hashes" in first) == (name in ("mooncake", "bailian"))
    assert ("arrival_s" in first) == (name != "sharegpt")


@pytest.mark.parametrize("definition", BUILT_INS, ids=lambda definition: definition.name)
def test_every_built_in_can_be_written_as_ours(definition: object, write: Write) -> None:
    name = getattr(definition, "name")  # noqa: B009
    workload = load_workload(name, limit=50)
    arrivals = "all" if workload.arrivals == "all" else "recorded"
    assert rewritten(write, native_lines(workload, {}), arrivals=arrivals).sha256 == workload.sha256


def test_hashes_that_are_no_prefix_hashes_are_written_as_segments(write: Write) -> None:
    """One key after two others is legal in segments, and no file of prefix hashes could say it."""
    rows = [
        {"pbench_workload": 1, "hash_block_size": 4},
        {"input_length": 8, "output_length": 1, "segments": [[1, 4], [2, 4]]},
        {"input_length": 8, "output_length": 1, "segments": [[3, 4], [2, 4]]},
    ]
    workload = load_workload(str(write("".join(json.dumps(row) + "\n" for row in rows))))
    lines = list(native_lines(workload, {}))
    assert "hash_block_size" not in json.loads(lines[0])
    assert json.loads(lines[2])["segments"] == [[2, 4], [1, 4]]
    assert rewritten(write, iter(lines)).sha256 == workload.sha256


def test_provenance_names_the_source_and_keeps_that_of_the_source(small_files: dict[str, str], write: Write) -> None:
    import hashlib

    path = write(small_files["mooncake"], "trace.jsonl")
    workload = load_workload(str(path), arrivals="recorded", limit=2)
    known = provenance(workload, licence="Apache-2.0")
    assert known["source"] == "trace.jsonl"
    assert known["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (known["licence"], known["format"], known["options"]) == ("Apache-2.0", "mooncake", {"limit": 2})
    second = write("".join(native_lines(workload, known)), "second.jsonl")
    later = provenance(load_workload(str(second)), licence=None)
    assert later["licence"] == "Apache-2.0"
    assert later["imported_from"]["source"] == "trace.jsonl"
    made = provenance(load_workload("uniform", seed=4), licence=None)
    assert (made["source"], made["seed"], made["licence"]) == ("built-in", 4, None)
    assert "source_sha256" not in made


def test_provenance_does_not_replace_what_the_reader_needs(write: Write) -> None:
    workload = load_workload("uniform", limit=2)
    lines = list(native_lines(workload, {"pbench_workload": 7, "sha256": "wrong", "note": "mine"}))
    header = json.loads(lines[0])
    assert (header["pbench_workload"], header["sha256"], header["note"]) == (1, workload.sha256, "mine")


@rewriting
@given(ROWS, TIMES_NS)
def test_mooncakes_format_keeps_lengths_milliseconds_and_whole_shared_blocks(
    write: Write, rows: list[dict[str, object]], times_ns: list[int]
) -> None:
    single = [{key: value for key, value in row.items() if key not in ("n", "beam_width")} for row in rows]
    long = [
        row | {"segments": [[key, 61 * n] for key, n in row["segments"]]} if "segments" in row else row
        for row in single
    ]  # type: ignore[attr-defined]
    workload = load_workload(str(write(native(long, times_ns))), arrivals="recorded")
    again = rewritten(write, mooncake_lines(workload), arrivals="recorded")
    assert again.format == "mooncake"
    for before, after in zip(workload.requests, again.requests, strict=True):
        assert (after.input_length, after.output_length) == (before.input_length, before.output_length)
        assert after.arrival_s == pytest.approx(before.arrival_s, abs=0.0011)
    for is_partial_counted in (True, False):
        kept, all_ = (
            ideal_hits(each.requests, block_size=512, capacities=[None, 3], is_partial_counted=is_partial_counted)
            for each in (again, workload)
        )
        assert kept == all_


def test_a_mooncake_trace_written_again_is_the_same(small_files: dict[str, str], write: Write) -> None:
    workload = load_workload(str(write(small_files["mooncake"])), arrivals="recorded")
    assert rewritten(write, mooncake_lines(workload), arrivals="recorded").sha256 == workload.sha256


def test_several_samples_cannot_be_written_as_mooncakes() -> None:
    with pytest.raises(WorkloadError, match="asks for up to 4 samples or beams of a prompt"):
        next(mooncake_lines(load_workload("parallel-sampling")))
