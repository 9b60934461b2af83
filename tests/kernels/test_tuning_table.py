"""How launches are cut up: rules that fit every GPU, and a table that is read once and obeyed."""

import builtins
import io
import json
from pathlib import Path

import pytest
import torch

from pbench.kernels import decode_attention, prefill_attention, tuning_table
from pbench.kernels.launch import INTERPRETER_LIMITS, DeviceLimits
from pbench.kernels.tiling import (
    DecodeTiling,
    Operands,
    PrefillTiling,
    SharedTiling,
    decode_rule,
    prefill_rule,
    shared_rule,
)
from pbench.kernels.tuning_table import (
    Entry,
    Tuned,
    choose_decode_tiling,
    choose_prefill_tiling,
    choose_shared_tiling,
    read_table,
    table_text,
)

LLAMA = Operands(head_dim=128, group=4, query_bytes=2, kv_bytes=2)


def test_an_untuned_hopper_is_cut_up_as_it_was_measured():
    limits = DeviceLimits(132, 232448, (9, 0))
    assert decode_rule(limits, LLAMA) == DecodeTiling(64, 2, 4, 2, 4)
    assert decode_rule(limits, LLAMA, 264) == DecodeTiling(64, 2, 4, 2, 4)
    assert decode_rule(limits, LLAMA, 265) == DecodeTiling(32, 2, 2, 4, 8)
    assert decode_rule(limits, LLAMA._replace(kv_bytes=1), 265) == DecodeTiling(64, 2, 4, 2, 4)
    assert prefill_rule(limits, LLAMA, 8192) == PrefillTiling(128, 64, 8, 2)
    assert prefill_rule(limits, LLAMA, 50) == PrefillTiling(64, 64, 4, 2)
    assert shared_rule(limits, LLAMA) == SharedTiling(128, 64, 8, 2)


def test_programs_are_fewer_where_wide_heads_or_many_need_more_memory():
    limits = DeviceLimits(132, 232448, (9, 0))
    wide = LLAMA._replace(head_dim=256)
    assert decode_rule(limits, wide) == DecodeTiling(32, 2, 4, 2, 8)
    assert decode_rule(limits, LLAMA._replace(group=64)) == DecodeTiling(64, 2, 4, 1, 4)
    assert decode_rule(limits, wide._replace(group=64)) == DecodeTiling(32, 2, 4, 1, 8)


def entry(tiling) -> Entry:
    return Entry(tiling, "NVIDIA H200", 0.03, 0.01)


TABLE = {
    Tuned("decode", (0, 0), LLAMA): entry(DecodeTiling(32, 3, 8, 1, 5)),
    Tuned("prefill", (0, 0), LLAMA): entry(PrefillTiling(64, 32, 4, 1)),
    Tuned("shared", (0, 0), LLAMA): entry(SharedTiling(64, 16, 4, 2)),
    Tuned("decode", (9, 0), LLAMA): entry(DecodeTiling(128, 1, 8, 1, 2)),
}


def test_a_table_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(table_text(TABLE))
    assert read_table(path) == TABLE
    assert table_text(dict(reversed(TABLE.items()))) == path.read_text()


def test_what_the_table_says_is_chosen_for_its_gpu_and_operands_alone(monkeypatch):
    monkeypatch.setattr(tuning_table, "_TABLE", TABLE)
    decode, prefill, shared, hopper = (one.tiling for one in TABLE.values())
    limits = INTERPRETER_LIMITS
    assert choose_decode_tiling(limits, LLAMA) == decode
    assert choose_decode_tiling(limits._replace(capability=(9, 0)), LLAMA) == hopper
    assert choose_decode_tiling(limits._replace(capability=(9, 1)), LLAMA) == decode_rule(limits, LLAMA)
    assert choose_prefill_tiling(limits, LLAMA, 64) == prefill
    assert choose_prefill_tiling(limits, LLAMA, 63) == prefill_rule(limits, LLAMA, 63), "no larger than the work"
    assert choose_shared_tiling(limits, LLAMA) == shared
    for other in (LLAMA._replace(head_dim=64), LLAMA._replace(group=8), LLAMA._replace(kv_bytes=1)):
        assert choose_decode_tiling(limits, other) == decode_rule(limits, other)
        assert choose_prefill_tiling(limits, other, 64) == prefill_rule(limits, other, 64)
        assert choose_shared_tiling(limits, other) == shared_rule(limits, other)


def test_launchers_take_what_the_table_says_and_read_no_file(monkeypatch, build_cache, device):
    if device == "cuda":
        pytest.skip("the table is of the interpreter's limits")
    monkeypatch.setattr(tuning_table, "_TABLE", TABLE)

    def refuse(*_arguments, **_options):
        raise AssertionError("a file is opened within a step")

    cache = build_cache([70, 33], num_kv_heads=2, head_dim=128, block_size=16, is_contiguous=False, dtype=torch.float16)
    query = torch.randn(64, 8, 128, dtype=torch.float16)
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", refuse)
        patch.setattr(io, "open", refuse)
        prefill = prefill_attention._tiling(query, cache.kv)
        untuned = choose_decode_tiling(INTERPRETER_LIMITS, Operands(80, 1, 4, 4))
    plan = decode_attention._plan(query[:2], cache.kv, cache.context_lens)
    assert plan.tiling == DecodeTiling(32, 3, 8, 1, 5)
    assert plan.num_programs == INTERPRETER_LIMITS.num_sms
    assert prefill == PrefillTiling(64, 32, 4, 1)
    assert untuned == decode_rule(INTERPRETER_LIMITS, Operands(80, 1, 4, 4))


def broken(**changes) -> str:
    document = json.loads(table_text(TABLE))
    first = document["tilings"][0]
    for name, value in changes.items():
        group, _, field = name.partition("__")
        if field:
            first[group][field] = value
        else:
            first[group] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "no table of tilings of version 1"),
        ('{"version": 2, "tilings": []}', "no table of tilings of version 1"),
        ('{"version": 1}', "tilings is missing"),
        ('{"version": 1, "tilings": [3]}', r"tilings\[0\] is 3"),
        (broken(kernel="copy"), r"tilings\[0\].kernel is 'copy'; expected one of decode, prefill, shared"),
        (broken(capability="9.0"), r"tilings\[0\].capability is '9.0'"),
        (broken(capability=[9, True]), r"tilings\[0\].capability"),
        (broken(tiling={"tile_tokens": 64}), r"tilings\[0\].tiling is .*expected an object of tile_tokens"),
        (broken(tiling__tile_tokens=33), r"tilings\[0\].tiling.tile_tokens is 33; expected one of 16, 32"),
        (broken(tiling__num_warps=True), r"tilings\[0\].tiling.num_warps is True"),
        (broken(operands__head_dim=100), r"tilings\[0\].operands.head_dim is 100"),
        (broken(gain=None), r"tilings\[0\] does not say"),
    ],
)
def test_a_broken_table_is_refused_by_its_place(text, words, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_table(path)


def test_two_entries_for_the_same_are_refused(tmp_path):
    path = tmp_path / "table.json"
    document = json.loads(table_text(TABLE))
    document["tilings"].append(document["tilings"][2])
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"tilings\[4\] is for what an entry before it is for"):
        read_table(path)


def test_the_table_is_part_of_a_wheel():
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"pbench.kernels" = ["*.json"]' in pyproject
