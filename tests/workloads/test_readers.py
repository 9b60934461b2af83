import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pbench.workloads.catalogue import load_workload
from pbench.workloads.errors import WorkloadError
from pbench.workloads.readers import FORMATS
from pbench.workloads.request import Segment, WorkloadRequest

Write = Callable[..., Path]


def requests(path: Path, **options: object) -> list[WorkloadRequest]:
    return list(load_workload(str(path), **options).requests)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_zipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", [each.name for each in FORMATS])
def test_a_format_is_told_by_its_content(name: str, is_zipped: bool, small_files: dict[str, str], write: Write) -> None:
    path = write(small_files[name], is_zipped=is_zipped)
    assert load_workload(str(path)).format == name
    assert [each.name for each in FORMATS if each.recognise(small_files[name])] == [name]


@pytest.mark.parametrize("name", [each.name for each in FORMATS])
@pytest.mark.parametrize("change", ["\ufeff{}", "\n\n{}", "CRLF", "{}\n \n"], ids=["BOM", "blank head", "CRLF", "tail"])
def test_byte_order_marks_line_ends_and_blank_lines_do_not_matter(
    name: str, change: str, small_files: dict[str, str], write: Write
) -> None:
    text = small_files[name]
    changed = text.replace("\n", "\r\n") if change == "CRLF" else change.format(text)
    assert requests(write(changed)) == requests(write(text, "plain.dat"))


def test_azure_times_keep_their_last_digit(small_files: dict[str, str], write: Write) -> None:
    first, second, third = requests(write(small_files["azure"]), arrivals="recorded")
    assert first == WorkloadRequest(0, 0.0, 374, 44, (Segment(0, 374),))
    assert (second.arrival_s, second.input_length, second.output_length) == (4.314579, 396, 109)
    assert third.arrival_s == 13.31941


@pytest.mark.parametrize("time", ["2024-05-10 00:00:00.009930+00:00", "2024-05-10T00:00:00.009930Z"])
def test_azure_times_may_have_a_zone(time: str, write: Write) -> None:
    header = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    both = requests(write(f"{header}{time},1,2\n2024-05-10 02:00:01.009930+02:00,3,4\n"), arrivals="recorded")
    assert [request.arrival_s for request in both] == [0.0, 1.0]


def test_mooncake_hashes_become_runs_of_512_tokens_and_a_rest(small_files: dict[str, str], write: Write) -> None:
    first, second, third = requests(write(small_files["mooncake"]), arrivals="recorded")
    assert first.segments == ((0, 512), (1, 512), (2, 76))
    assert second.segments == ((0, 512), (1, 512))
    assert third.segments == ((0, 512), (3, 1))  # keys are numbered as they first appear
    assert [request.arrival_s for request in (first, second, third)] == [0.0, 3.0, 3.0]


def test_bailian_hashes_cover_16_tokens_and_the_rest_is_the_requests_own(
    small_files: dict[str, str], write: Write
) -> None:
    first, second = requests(write(small_files["bailian"]), arrivals="recorded")
    assert first.segments == ((0, 16), (1, 16), (2, 8))
    assert second.segments == ((0, 16), (1, 16), (3, 3))
    assert second.arrival_s == 60.614


def test_burstgpt_columns_are_found_by_name_and_failed_requests_are_counted(
    small_files: dict[str, str], write: Write
) -> None:
    early = load_workload(str(write(small_files["burstgpt"])), arrivals="recorded")
    assert [(r.arrival_s, r.input_length, r.output_length) for r in early.requests] == [(0, 472, 18), (40, 1087, 230)]
    assert (early.num_offered, early.num_dropped_empty, early.num_dropped_too_long) == (3, 1, 0)
    later = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5.0,s-1,2.5,ChatGPT,472,18,490,Conversation log\n"
        "45.0,,,ChatGPT,1087,230,1317,Conversation log\n"
    )
    same = load_workload(str(write(later, "later.csv")), arrivals="recorded")
    assert same.sha256 == early.sha256


def test_sharegpt_takes_the_first_answer_and_drops_conversations_without_one(
    small_files: dict[str, str], write: Write
) -> None:
    workload = load_workload(str(write(small_files["sharegpt"])))
    assert (workload.num_requests, workload.num_dropped_empty) == (2, 1)
    first, second = workload.requests
    assert first.segments == second.segments == ((0, 7),)  # 28 bytes, 4 a token; equal questions are equal tokens
    assert (first.output_length, second.output_length) == (2, 6)


def test_sharegpt_takes_every_answer_with_what_was_said_before(small_files: dict[str, str], write: Write) -> None:
    path = write(small_files["sharegpt"])
    workload = load_workload(str(path), overrides={"turns": "all", "bytes_per_token": "2"})
    assert [request.segments for request in workload.requests] == [
        ((0, 14),),
        ((0, 14), (1, 4), (2, 6)),
        ((0, 14),),
    ]


def test_sharegpt_is_measured_by_a_tokenizer_where_one_is_given(
    small_files: dict[str, str], write: Write, tmp_path: Path
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    path = write(small_files["sharegpt"])
    first, second = requests(path, overrides={"tokenizer": str(folder)})
    assert (first.input_length, first.output_length) == (7, 1)
    assert (second.input_length, second.output_length) == (7, 5)


def test_a_tokenizer_that_is_not_there_is_refused(small_files: dict[str, str], write: Write) -> None:
    with pytest.raises(WorkloadError, match="tokenizer=/nowhere is not a folder with a Hugging Face tokenizer"):
        requests(write(small_files["sharegpt"]), overrides={"tokenizer": "/nowhere"})


def test_our_own_format_gives_all_it_can_hold(small_files: dict[str, str], write: Write) -> None:
    hashed, sampled, explicit, segmented = requests(write(small_files["pbench"]), arrivals="recorded")
    assert hashed == WorkloadRequest(0, 0.0, 10, 3, (Segment(0, 4), Segment(1, 4), Segment(2, 2)))
    assert sampled == WorkloadRequest(1, 0.5, 8, 4, (Segment(0, 4), Segment(3, 4)), None, 2)
    assert explicit == WorkloadRequest(2, 0.5, 3, 2, (), (5, 6, 7))
    assert segmented == WorkloadRequest(3, 2.0, 9, 2, (Segment(0, 4), Segment(4, 5)))


def test_our_own_format_needs_no_header_and_no_times(write: Write) -> None:
    path = write('{"input_length": 33, "output_length": 1, "prefix_hashes": [4, 5]}\n')
    (request,) = requests(path)
    assert request.segments == ((0, 16), (1, 16), (2, 1))
    assert not load_workload(str(path)).has_recorded_times
    with pytest.raises(WorkloadError, match="has no recorded times; use arrivals such as poisson:RATE, or all"):
        load_workload(str(path), arrivals="recorded")


def test_equal_keys_in_hashes_and_segments_are_equal_tokens_across_rows(write: Write) -> None:
    rows = (
        {"input_length": 6, "output_length": 1, "segments": [[900, 6]]},
        {"input_length": 7, "output_length": 1, "segments": [[12, 3], [900, 4]]},
    )
    first, second = requests(write("".join(json.dumps(row) + "\n" for row in rows)))
    assert first.segments == ((0, 6),)
    assert second.segments == ((1, 3), (0, 4))


def test_a_file_that_no_format_claims_lists_the_formats(write: Write) -> None:
    with pytest.raises(WorkloadError) as caught:
        requests(write("hello world\n1,2,3\n"))
    message = str(caught.value)
    assert "line 1: no known format begins like this: 'hello world'" in message
    assert all(each.description in message for each in FORMATS)


def test_a_file_is_read_no_further_than_the_limit(small_files: dict[str, str], write: Write) -> None:
    path = write(small_files["mooncake"] + "this is no JSON\n")
    assert load_workload(str(path), limit=3).num_offered == 3
    with pytest.raises(WorkloadError, match="line 4"):
        load_workload(str(path), limit=4)
