"""A damaged file gives one error that names file, line and field; never a traceback, never a row left out unsaid."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbench.workloads.catalogue import load_workload
from pbench.workloads.errors import WorkloadError

Write = Callable[..., Path]

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,472,18\n"
SHAREGPT = '[{"id": "a", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},\n'


def mooncake(**changes: object) -> str:
    """A good row and, below it, one with changes; a field that is None is left out."""
    row: dict[str, object] = {"timestamp": 5, "input_length": 600, "output_length": 3, "hash_ids": [1, 2]}
    changed = {key: value for key, value in (row | changes).items() if value is not None}
    return f"{json.dumps(row)}\n{json.dumps(changed)}\n"


def native(**fields: object) -> str:
    """A good row and, below it, one with these fields."""
    return f'{{"input_length": 10, "output_length": 2}}\n{json.dumps(fields)}\n'


def fault(write: Write, content: str | bytes, **options: object) -> str:
    """The error of a damaged file, which names it; what stands after its name."""
    path = write(content)
    with pytest.raises(WorkloadError) as caught:
        load_workload(str(path), **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize(
    ("content", "line", "field", "problem"),
    [
        (mooncake(input_length=None), 2, "input_length", "is missing"),
        (mooncake(input_length="600"), 2, "input_length", "is '600', not a whole number"),
        (mooncake(input_length=600.5), 2, "input_length", "is 600.5, not a whole number"),
        (mooncake(input_length=True), 2, "input_length", "is True, not a whole number"),
        (mooncake(input_length=-600), 2, "input_length", "is -600, outside 0..2147483647"),
        (mooncake(input_length=2**31), 2, "input_length", "is 2147483648, outside 0..2147483647"),
        (mooncake(output_length=10**400), 2, "output_length", "is a number of 1329 bits, outside"),
        (mooncake(output_length=float("nan")), 2, "output_length", "is nan, not a whole number"),
        (mooncake(output_length=[3]), 2, "output_length", "is [3], not a whole number"),
        (mooncake(timestamp=float("nan")), 2, "timestamp", "is nan, outside"),
        (mooncake(timestamp=float("inf")), 2, "timestamp", "is inf, outside"),
        (mooncake(timestamp=-1), 2, "timestamp", "is -1, outside"),
        (mooncake(timestamp="5"), 2, "timestamp", "is '5', not a number"),
        (mooncake(timestamp=True), 2, "timestamp", "is True, not a number"),
        (mooncake(timestamp=4), 2, "timestamp", "before the row above; sort the rows by time"),
        (mooncake(hash_ids=[1]), 2, "hash_ids", "has 1 hashes; a prompt of 600 tokens has 2, one for every 512"),
        (mooncake(hash_ids=[1, 2, 3]), 2, "hash_ids", "has 3 hashes; a prompt of 600 tokens has 2, one for every 512"),
        (mooncake(hash_ids=[2, 1]), 2, "hash_ids", "has hash 2 at position 0 after nothing, in an earlier row after"),
        (mooncake(hash_ids=[1, "2"]), 2, "hash_ids", "has '2' at position 1, not a whole number"),
        (mooncake(hash_ids=[1, -2]), 2, "hash_ids", "has -2 at position 1, outside"),
        (mooncake(hash_ids=[1, 2**63]), 2, "hash_ids", "has 9223372036854775808 at position 1, outside"),
        (mooncake(hash_ids={"1": 2}), 2, "hash_ids", "is {'1': 2}, not a list"),
        (native(input_length=10), 2, "output_length", "is missing (the row has 'input_length')"),
        (native(input_length=10, output_length=2, n=0), 2, "n", "is 0, outside 1..1024"),
        (native(input_length=10, output_length=2, beam_width=0), 2, "beam_width", "is 0, outside 1..1024"),
        (native(input_length=10, output_length=2, n=3, beam_width=2), 2, "n", "more hypotheses than the 2 beams"),
        (native(input_length=10, output_lenght=2), 2, "output_lenght", "is unknown; did you mean 'output_length'?"),
        (native(input_length=10, output_length=2, arrival_s=1), 2, "arrival_s", "is there, unlike in the rows before"),
        (native(input_length=2, output_length=2, prompt_token_ids=[1]), 2, "input_length", "prompt_token_ids has 1"),
        (native(output_length=2, prompt_token_ids=[1, -1]), 2, "prompt_token_ids", "has -1 at position 1"),
        (native(output_length=2, prompt_token_ids=[], segments=[]), 2, "segments", "stands beside 'prompt_token_ids'"),
        (native(input_length=10, output_length=2, segments=[[1, 9]]), 2, "segments", "cover 9 tokens"),
        (native(input_length=10, output_length=2, segments=[[1, 0], [2, 10]]), 2, "segments", "has 0 in pair 0"),
        (native(input_length=10, output_length=2, segments=[[1, 10, 2]]), 2, "segments", "is not a list of [key"),
        ('{"pbench_workload": 2}\n', 1, "pbench_workload", "is version 2; this pbench reads version 1"),
        ('{"pbench_workload": 1, "hash_block_size": 0}\n', 1, "hash_block_size", "is 0, outside 1.."),
        (AZURE + "2023-11-16 18:15:47,many,3\n", 3, "ContextTokens", "is 'many', not a whole number"),
        (AZURE + "2023-11-16 18:15:47,3.0,3\n", 3, "ContextTokens", "is '3.0', not a whole number"),
        (AZURE + "2023-11-16 18:15:47,-5,3\n", 3, "ContextTokens", "is '-5', outside"),
        (AZURE + "2023-11-16 18:15:47,NaN,3\n", 3, "ContextTokens", "is 'NaN', not a whole number"),
        (AZURE + "2023-11-16 18:15:47,5,99999999999\n", 3, "GeneratedTokens", "is '99999999999', outside"),
        (AZURE + "2023-13-16 18:15:47,5,3\n", 3, "TIMESTAMP", "is '2023-13-16 18:15:47': month must be in 1..12"),
        (AZURE + "yesterday,5,3\n", 3, "TIMESTAMP", "is 'yesterday', not a time such as"),
        (AZURE + "1023-11-16 18:15:47,5,3\n", 3, "TIMESTAMP", "before 1970"),
        (AZURE + "2400-11-16 18:15:47,5,3\n", 3, "TIMESTAMP", "is '2400-11-16 18:15:47', later than 2116"),
        (AZURE + "2023-11-16 18:15:45,5,3\n", 3, "TIMESTAMP", "is 1.68 s before the row above"),
        (AZURE + "2023-11-16 18:15:47,5\n", 3, "GeneratedTokens", "2 cells where the header has 3; field"),
        (BURSTGPT + "nan,ChatGPT,5,3\n", 3, "Timestamp", "is 'nan', outside"),
        (BURSTGPT + "1e300,ChatGPT,5,3\n", 3, "Timestamp", "is '1e300', outside"),
        (BURSTGPT + ",ChatGPT,5,3\n", 3, "Timestamp", "is '', not a number"),
        (SHAREGPT + '{"id": "b"}]\n', 2, "conversations", "is missing or no list"),
        (
            SHAREGPT + '{"conversations": [{"from": "cat", "value": "?"}]}]',
            2,
            "from",
            "of message 0 is 'cat', not one of",
        ),
        (SHAREGPT + '{"conversations": [{"from": "gpt"}]}]', 2, "value", "of message 0 is NoneType, not text"),
    ],
)
def test_a_bad_field_is_named_with_its_line(write: Write, content: str, line: int, field: str, problem: str) -> None:
    message = fault(write, content)
    assert message.startswith(f", line {line}: ")
    assert f"field {field!r}" in message
    assert problem in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (mooncake()[:-20], ", line 2: not a JSON object: "),
        (mooncake() + "[1, 2]\n", ", line 3: not a JSON object but [1, 2]"),
        (mooncake() + "[" * 100_000 + "\n", ", line 3: not a JSON object: nested too deeply"),
        (mooncake() + f'{{"timestamp": {"9" * 5000}}}\n', ", line 3: not a JSON object: Exceeds the limit"),
        (mooncake().encode() + b'{"a": "\xff"}\n', ", line 3: not UTF-8 text: byte 0xff cannot stand there"),
        (mooncake().encode() + b"\x00\n", ", line 3: has a zero byte"),
        (AZURE.encode("utf-16"), ", line 1: has a zero byte: this is binary"),
        (b"\x7fELF\x02\x01\x01\x00\x00", ", line 1: has a zero byte: this is binary"),
        (b"", " is empty: it has no requests"),
        (b" \n\t\n", " is empty: it has no requests"),
        (b"\x1f\x8b\x08\x00rubbish, not gzip", ", line 1: the gzip file is damaged or truncated there"),
        (gzip.compress(mooncake().encode() * 2000, mtime=0)[:-30], ": the gzip file is damaged or truncated there"),
        (AZURE.split("\n")[0] + "\n", " has no requests to play: of 0 rows"),
        (AZURE + '"unclosed,5,3\n', ", line 3: not a CSV row"),
        (AZURE + "2023-11-16 18:15:47,5,3,7\n", ", line 3: 4 cells where the header has 3"),
        (AZURE.replace("GeneratedTokens", "GeneratedTokens,ContextTokens"), ", line 1: column 'ContextTokens' stands"),
        (SHAREGPT, ", line 2: the JSON array does not end (cut off?)"),
        (SHAREGPT + '{"id": "b", "conv', ", line 2: a conversation is not JSON: "),
        (SHAREGPT.rstrip(",\n") + '\n{"id": "b"}]', ", line 2: a comma or ] is wanted between conversations"),
        (SHAREGPT.rstrip(",\n") + "]\n\nmore", ", line 3: text after the end of the JSON array: 'more'"),
        (SHAREGPT + "7]", ", line 2: an item of the array is int, not a conversation"),
        (SHAREGPT.encode() + b'{"\xc3\x28": 1}]', ", line 2: not UTF-8 text: byte 0xc3"),
    ],
)
def test_a_damaged_file_is_named_with_the_place(write: Write, content: str | bytes, problem: str) -> None:
    assert problem in fault(write, content)


@pytest.mark.parametrize("is_zipped", [False, True], ids=["plain", "gzip"])
def test_lines_are_counted_across_megabytes(write: Write, is_zipped: bool) -> None:
    """Text is read by the megabyte where rows are no lines; the fault stands far behind the first."""
    item = SHAREGPT[1:]
    start = "[" + item * 20_000
    assert len(start) > 1_500_000
    cut_off = start.encode() + b"\xff"
    data = gzip.compress(cut_off, mtime=0) if is_zipped else cut_off
    assert fault(write, data).startswith(", line 20001: not UTF-8 text")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, problem in ((tmp_path / "nothing.csv", "does not exist"), (tmp_path, "is not a regular file")):
        with pytest.raises(WorkloadError, match=re.escape(f"{path} {problem}")):
            load_workload(str(path))


def test_a_header_anywhere_but_at_the_top_is_a_fault(write: Write) -> None:
    assert "field 'pbench_workload' is unknown" in fault(write, native().splitlines()[0] + '\n{"pbench_workload": 1}\n')


ROWS = st.fixed_dictionaries(
    {},
    optional={
        name: st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-3, 3),
            st.integers(),
            st.floats(),
            st.text(max_size=5),
            st.lists(st.one_of(st.integers(-2, 5), st.floats(), st.text(max_size=2)), max_size=4),
        )
        for name in ("timestamp", "chat_id", "arrival_s", "input_length", "output_length", "hash_ids", "n", "segments")
    },
)

read_only = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def plays_or_complains(path: Path) -> None:
    """The property of every fuzz: a whole workload, or one WorkloadError that names the file."""
    try:
        workload = load_workload(str(path))
    except WorkloadError as error:
        if not str(error).startswith(str(path)):
            raise
        return
    num_kept = workload.num_offered - workload.num_dropped_empty
    assert len(list(workload.requests)) == workload.num_requests == num_kept
    for request in workload.requests:
        assert request.input_length >= 1
        assert request.output_length >= 1
        if request.prompt_token_ids is None:
            assert sum(length for _, length in request.segments) == request.input_length


@read_only
@given(rows=st.lists(ROWS, min_size=1, max_size=4))
def test_any_json_rows_are_played_or_refused(write: Write, rows: list[dict[str, object]]) -> None:
    plays_or_complains(write("".join(json.dumps(row) + "\n" for row in rows)))


@read_only
@given(data=st.data(), is_zipped=st.booleans())
def test_any_damage_to_a_file_is_played_or_refused(
    write: Write, small_files: dict[str, str], data: st.DataObject, is_zipped: bool
) -> None:
    content = bytearray(small_files[data.draw(st.sampled_from(sorted(small_files)))].encode())
    if is_zipped:
        content = bytearray(gzip.compress(content, mtime=0))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(start + 20, len(content))))
        content[start:end] = data.draw(st.binary(max_size=6))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    plays_or_complains(write(bytes(content)))


@read_only
@given(content=st.binary(max_size=200))
def test_any_bytes_are_played_or_refused(write: Write, content: bytes) -> None:
    plays_or_complains(write(content))


@read_only
@given(data=st.data())
def test_rows_in_any_order_are_played_or_refused(
    write: Write, small_files: dict[str, str], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(small_files)))
    plays_or_complains(write("\n".join(data.draw(st.permutations(small_files[name].splitlines())))))
