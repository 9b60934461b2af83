"""The recorded traces, where they are found: what they are known to hold."""

import time
from pathlib import Path

import numpy as np
import pytest

from pbench.workloads.catalogue import load_workload
from pbench.workloads.errors import WorkloadError
from pbench.workloads.ideal_cache import ideal_hits
from pbench.workloads.prefixes import prefix_sharing


def test_azure_has_its_published_size(azure_trace: Path) -> None:
    workload = load_workload(str(azure_trace), arrivals="recorded")
    assert workload.format == "azure"
    assert workload.num_requests == workload.num_offered == 19_366
    assert workload.total_input_tokens / workload.num_requests == pytest.approx(1155, abs=0.5)
    assert workload.total_output_tokens / workload.num_requests == pytest.approx(211, abs=0.5)
    assert workload.requests.arrival_ns[1] == 4_314_579_000  # 18:15:50.9951690 - 18:15:46.6805900
    assert prefix_sharing(workload.requests).saved_tokens == 0


def test_azure_within_4096_tokens(azure_trace: Path) -> None:
    workload = load_workload(str(azure_trace), max_length=4096)
    assert (workload.num_requests, workload.num_dropped_too_long) == (17_754, 19_366 - 17_754)
    assert workload.largest_request_tokens <= 4096


def test_mooncake_has_its_published_size(mooncake_trace: Path) -> None:
    workload = load_workload(str(mooncake_trace), arrivals="recorded")
    assert workload.format == "mooncake"
    assert workload.num_requests == workload.num_offered == 12_031
    assert workload.total_input_tokens / workload.num_requests == pytest.approx(12_035, abs=0.5)
    assert workload.total_output_tokens / workload.num_requests == pytest.approx(343, abs=0.5)
    assert len(np.unique(workload.requests.arrival_ns)) == 1_180


@pytest.mark.parametrize(
    ("is_partial_counted", "rates"),
    [(True, (36.64, 4.45, 21.12, 35.46)), (False, (38.19, 4.68, 22.42, 37.10))],
    ids=["every block", "full blocks"],
)
def test_mooncakes_ideal_hits_are_the_known_ones(
    mooncake_trace: Path, is_partial_counted: bool, rates: tuple[float, ...]
) -> None:
    workload = load_workload(str(mooncake_trace))
    assert workload.hash_block_size == 512
    start_s = time.process_time()
    hits = ideal_hits(
        workload.requests,
        block_size=512,
        capacities=[None, 1_000, 10_000, 50_000],
        is_partial_counted=is_partial_counted,
    )
    assert time.process_time() - start_s < 10
    assert tuple(round(100 * each.rate, 2) for each in hits) == rates


def test_dejitter_gives_almost_every_mooncake_request_a_time_of_its_own(mooncake_trace: Path) -> None:
    workload = load_workload(str(mooncake_trace), arrivals="recorded", is_dejittered=True)
    assert len(np.unique(workload.requests.arrival_ns)) == 12_031


def test_a_row_of_mooncake_that_is_broken_is_named(mooncake_trace: Path, tmp_path: Path) -> None:
    lines = mooncake_trace.read_text().splitlines()[:40]
    lines[30] = lines[30].replace('"hash_ids": [0, ', '"hash_ids": [')
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join(lines))
    with pytest.raises(WorkloadError, match=r"broken\.jsonl, line 31: field 'hash_ids' has \d+ hashes; a prompt of"):
        load_workload(str(broken))
