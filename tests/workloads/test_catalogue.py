import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pbench.workloads.catalogue import load_workload, parameter_owner, workload_names
from pbench.workloads.errors import WorkloadError

Write = Callable[..., Path]


def rows(*lengths: tuple[int, int], at_s: list[float] | None = None) -> str:
    times = at_s or [0.0] * len(lengths)
    return "".join(
        json.dumps({"arrival_s": time, "input_length": given, "output_length": made}) + "\n"
        for (given, made), time in zip(lengths, times, strict=True)
    )


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(WorkloadError) as caught:
        load_workload("sharegpt-lenghts")
    assert "workload 'sharegpt-lenghts' is unknown; did you mean 'sharegpt-lengths'?" in str(caught.value)
    assert all(name in str(caught.value) for name in workload_names())


@pytest.mark.parametrize("spec", ["requests.jsonl", "folder/requests", "./uniform", "uniform.d"])
def test_what_looks_like_a_path_is_one(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkloadError, match=re.escape(f"{Path(spec)} does not exist")):
        load_workload(spec)


def test_limit_counts_what_is_left_after_dropping(write: Write) -> None:
    path = write(rows((10, 1), (100, 1), (0, 5), (5, 0), (20, 1), (30, 1), (40, 1)))
    workload = load_workload(str(path), max_length=50, limit=2)
    assert [request.input_length for request in workload.requests] == [10, 20]
    assert workload.num_offered == 5  # the rows after the last one kept were not read
    assert (workload.num_dropped_too_long, workload.num_dropped_empty) == (1, 2)
    assert [request.request_id for request in workload.requests] == [0, 1]


def test_a_request_of_exactly_the_maximum_is_kept(write: Write) -> None:
    path = write(rows((40, 10), (40, 11)))
    assert load_workload(str(path), max_length=50).num_requests == 1


def test_nothing_left_says_how_many_were_dropped_and_what_would_do(write: Write) -> None:
    path = write(rows((100, 50), (90, 30), (0, 7)))
    with pytest.raises(WorkloadError) as caught:
        load_workload(str(path), max_length=64)
    message = str(caught.value)
    assert "no requests of at most 64 tokens: of 3 rows 2 were dropped as too long" in message
    assert "the shortest needs --max-length 120" in message
    assert load_workload(str(path), max_length=120).num_requests == 1


def test_only_empty_rows_is_an_error(write: Write) -> None:
    with pytest.raises(WorkloadError, match="no requests to play: of 1 rows 1 had no input or no output tokens"):
        load_workload(str(write(rows((0, 7)))))


def test_recorded_times_are_relative_to_the_first_kept_request(write: Write) -> None:
    path = write(rows((100, 1), (10, 1), (10, 1), at_s=[3.0, 5.0, 6.5]))
    recorded = load_workload(str(path), max_length=50, arrivals="recorded")
    assert [request.arrival_s for request in recorded.requests] == [0.0, 1.5]
    at_once = load_workload(str(path), max_length=50)
    assert [request.arrival_s for request in at_once.requests] == [0.0, 0.0]
    assert at_once.has_recorded_times
    assert (at_once.arrivals, recorded.arrivals) == ("all", "recorded")


def test_rate_scale_and_dejitter_change_the_times_only(write: Write) -> None:
    path = write(rows(*[(10, 1)] * 5, at_s=[0, 0, 3, 3, 3]))
    times = [
        [request.arrival_s for request in load_workload(str(path), arrivals="recorded", **options).requests]
        for options in ({"rate_scale": 2.0}, {"is_dejittered": True}, {"is_dejittered": True, "rate_scale": 0.5})
    ]
    assert times == [[0, 0, 1.5, 1.5, 1.5], [0, 1.5, 3, 4, 5], [0, 3, 6, 8, 10]]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rate_scale": 2.0}, "a rate scale of 2 needs arrivals in time, not 'all'"),
        ({"rate_scale": 2.0, "arrivals": "closed:3"}, "needs arrivals in time, not 'closed:3'"),
        ({"rate_scale": 0.0, "arrivals": "poisson:1"}, "rate scale 0 is outside"),
        ({"rate_scale": float("nan"), "arrivals": "poisson:1"}, "rate scale nan is outside"),
        ({"is_dejittered": True}, "dejittering needs recorded arrivals, not 'all'; use --arrivals recorded"),
        ({"is_dejittered": True, "arrivals": "poisson:1"}, "dejittering needs recorded arrivals, not 'poisson:1'"),
        ({"arrivals": "recorded"}, "uniform has no recorded times"),
        ({"limit": 0}, "limit is 0; it is at least 1"),
        ({"sample": -1}, "sample is -1; it is at least 1"),
        ({"max_length": 0}, "max_length is 0; it is at least 1"),
        ({"overrides": {"input_mxa": "7"}}, "workload uniform has no parameter 'input_mxa'; did you mean 'input_max'?"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], problem: str) -> None:
    with pytest.raises(WorkloadError, match=re.escape(problem)):
        load_workload("uniform", **options)  # type: ignore[arg-type]


def test_a_sample_keeps_order_and_times_and_depends_on_the_seed(write: Write) -> None:
    lengths = [(10 + index, 1) for index in range(200)]
    path = write(rows(*lengths, at_s=[float(index) for index in range(200)]))
    drawn = [load_workload(str(path), arrivals="recorded", sample=30, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0].sha256 == drawn[1].sha256 != drawn[2].sha256
    requests = list(drawn[0].requests)
    assert len(requests) == 30
    first = requests[0].input_length - 10
    assert [request.arrival_s for request in requests] == [request.input_length - 10 - first for request in requests]
    spread = [request.input_length - 10 for request in requests]
    assert sum(index < 100 for index in spread) in range(7, 24)  # not the first ones: 15 expected, sigma 2.5


def test_a_sample_of_all_is_all(write: Write) -> None:
    path = write(rows((10, 1), (20, 1)))
    assert load_workload(str(path), sample=2).sha256 == load_workload(str(path), sample=9).sha256
    assert load_workload(str(path), sample=2).sha256 == load_workload(str(path)).sha256


def test_arrivals_are_the_definitions_own_unless_said_otherwise() -> None:
    assert load_workload("chat-multi-turn", limit=5).arrivals == "recorded"
    assert load_workload("code-completion", limit=5).arrivals == "gamma:20:3"
    assert load_workload("code-completion", limit=5, arrivals="all").arrivals == "all"
    assert load_workload("uniform", limit=5).arrivals == "all"


def test_a_closed_loop_says_its_concurrency() -> None:
    workload = load_workload("uniform", limit=20, arrivals="closed:4")
    assert workload.concurrency == 4
    assert not workload.requests.arrival_ns.any()
    assert workload.sha256 != load_workload("uniform", limit=20).sha256


def test_what_was_chosen_is_recorded() -> None:
    workload = load_workload(
        "uniform",
        seed=3,
        limit=9,
        max_length=1500,
        sample=4,
        arrivals="poisson:2",
        rate_scale=1.5,
        overrides={"input_max": "200"},
    )
    record = json.loads(json.dumps(workload.record()))
    assert record["parameters"]["input_max"] == 200
    assert record["options"] == {"limit": 9, "max_length": 1500, "sample": 4, "rate_scale": 1.5}
    assert (record["seed"], record["arrivals"], record["num_requests"]) == (3, "poisson:2", 4)
    assert record["sha256"] == workload.sha256
    assert record["largest_request_tokens"] == max(r.input_length + r.output_length for r in workload.requests)


def test_parameters_have_an_owner(write: Write, small_files: dict[str, str]) -> None:
    assert parameter_owner(load_workload("uniform")).name == "uniform"
    assert parameter_owner(load_workload(str(write(small_files["sharegpt"])))).name == "sharegpt"
