from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbench.engine.records import KVUsage, RequestRecord, StepRecord
from pbench.engine.request import Request, SamplingParams
from pbench.errors import ResultError
from pbench.journal import FLUSH_INTERVAL_NS, DeviceSample, Journal, JournalFile, read_rows
from pbench.results import DEVICE_COLUMNS, REQUEST_COLUMNS, SHARER_COLUMNS, STEP_COLUMNS, Run
from pbench.tables import read_journal, write_tables

START_NS = 10**15


def step_record(step: int) -> StepRecord:
    parts = {"token_state": 60, "reserved": 1, "internal": 2, "external": 3, "cached": 4, "free": 30}
    usage = KVUsage(**parts, shared_saved=9, blocks_by_sharers=(7, 6, 5, 4, 3, 2))
    return StepRecord(
        step=step,
        start_ns=START_NS + step * 1000,
        end_ns=START_NS + step * 1000 + 900,
        num_prefill_tokens=11,
        num_decode_tokens=12,
        num_output_tokens=13,
        num_prefix_hit_tokens=14,
        num_near_miss_tokens=26,
        num_recomputed_tokens=15,
        num_running=16,
        num_waiting=17,
        num_finished=18,
        num_preempted=19,
        num_forks=20,
        num_copied_blocks=21,
        num_evicted_blocks=22,
        num_swapped_out_blocks=24,
        num_swapped_in_blocks=25,
        num_moved_slots=23,
        is_memory_blocked=step % 2 == 1,
        usage=usage,
    )


def request_record(request_id: int, status: str) -> RequestRecord:
    return RequestRecord(
        request_id=request_id,
        status=status,
        arrival_ns=START_NS + 1,
        added_ns=START_NS + 2,
        first_scheduled_ns=START_NS + 3,
        first_token_ns=START_NS + 4,
        finished_ns=START_NS + 5,
        num_prompt_tokens=6,
        num_output_tokens=7,
        num_sequences=8,
        num_prefix_hit_tokens=9,
        num_recomputed_tokens=10,
        num_preemptions=11,
        kv_byte_seconds=1.5,
    )


def test_every_field_of_a_step_arrives_in_its_column(tmp_path: Path) -> None:
    with Journal(tmp_path, START_NS) as journal:
        journal.step(step_record(0))
        journal.step(step_record(1))
    steps = read_journal(tmp_path, "paged").steps
    assert {name: str(kind) for name, kind in steps.dtypes.items() if name != "engine"} == {
        name: kind for name, kind in STEP_COLUMNS.items() if name != "engine"
    }
    row: dict[str, object] = {str(name): value for name, value in steps.iloc[1].items()}
    record = step_record(1)
    assert (row.pop("engine"), row.pop("repeat")) == ("paged", 1)
    assert (row.pop("start_ns"), row.pop("end_ns")) == (1000, 1900)
    assert tuple(row.pop(name) for name in SHARER_COLUMNS) == record.usage.blocks_by_sharers
    for name, value in row.items():
        assert value == getattr(record, name, None) or value == getattr(record.usage, name), name


def test_the_last_note_of_a_request_stands(tmp_path: Path) -> None:
    with Journal(tmp_path, START_NS) as journal:
        for request_id in (3, 1, 2):
            request = Request(request_id, [1, 2, 3, 4, 5, 6], SamplingParams(max_tokens=7, n=8), START_NS + 1)
            journal.offered(request, START_NS + 2)
        journal.request(request_record(3, "finished"))
        journal.request(request_record(1, "unfinished"))
    requests = read_journal(tmp_path, "paged").requests.set_index("request_id")
    assert list(requests.index) == [1, 2, 3]
    assert list(requests["status"]) == ["unfinished", "unfinished", "finished"]
    assert requests.loc[3, "finished_ns"] == 5
    assert requests["finished_ns"].isna().tolist() == [True, True, False]
    assert requests["first_token_ns"].isna().tolist() == [False, True, False]  # 2 was only offered
    assert requests["arrival_ns"].tolist() == [1, 1, 1]
    assert requests["added_ns"].tolist() == [2, 2, 2]
    assert requests["num_prompt_tokens"].tolist() == [6, 6, 6]
    assert requests["num_sequences"].tolist() == [8, 8, 8]


def test_tables_of_several_engines_read_back_from_parquet(tmp_path: Path) -> None:
    tables = []
    for engine in ("paged", "contiguous:max"):
        folder = tmp_path / engine.replace(":", "-")
        folder.mkdir()
        with Journal(folder, START_NS) as journal:
            journal.step(step_record(0))
            journal.sample(DeviceSample(5, "process", process_rss_bytes=100))
        tables.append(read_journal(folder, engine))
    write_tables(tmp_path, tables)
    run = Run(tmp_path)
    assert list(run.steps()["engine"]) == ["paged", "contiguous:max"]
    assert list(run.device().columns) == list(DEVICE_COLUMNS)
    assert run.device()["device_used_bytes"].isna().all()
    assert list(run.requests().columns) == list(REQUEST_COLUMNS)
    assert run.requests().empty


def test_device_samples_have_the_columns_order() -> None:
    assert DeviceSample._fields == tuple(DEVICE_COLUMNS)[2:]


@given(cut=st.integers(min_value=0))
def test_a_file_cut_anywhere_keeps_every_whole_row(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("journal") / "steps.jsonl"
    file = JournalFile(path, ("a", "b"))
    for value in range(20):
        file.append((value, "ü" * value))
    file.close()
    whole = path.read_bytes()
    cut %= len(whole) + 1
    path.write_bytes(whole[:cut])
    num_whole_rows = max(0, whole[:cut].count(b"\n") - 1)
    assert read_rows(path) == [{"a": value, "b": "ü" * value} for value in range(num_whole_rows)]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text('["a"]\n[1]\n[2\n[3]\n')
    with pytest.raises(ResultError, match=r"steps\.jsonl, line 3"):
        read_rows(path)


def test_rows_reach_the_disk_within_the_flush_interval(tmp_path: Path) -> None:
    now_ns = 0
    path = tmp_path / "steps.jsonl"
    file = JournalFile(path, ("a",), clock_ns=lambda: now_ns)
    file.append((1,))
    assert read_rows(path) == []
    now_ns = FLUSH_INTERVAL_NS - 1
    file.append((2,))
    assert read_rows(path) == []
    now_ns = FLUSH_INTERVAL_NS
    file.flush_if_due()
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    file.append((3,))
    file.close()
    assert [row["a"] for row in read_rows(path)] == [1, 2, 3]
