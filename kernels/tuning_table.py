"""What ``pbench kernels tune`` found to be faster than the rules of tiling.py, on which GPU, for which operands.

The table is read once, when this module is imported: nothing is read or tried out while an engine runs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pbench.kernels.launch import DeviceLimits
from pbench.kernels.tiling import (
    DecodeTiling,
    Operands,
    PrefillTiling,
    SharedTiling,
    Tiling,
    decode_rule,
    prefill_rule,
    shared_rule,
)

TABLE_PATH = Path(__file__).with_name("tuning_table.json")
VERSION = 1
TILINGS: Mapping[str, type[Tiling]] = {"decode": DecodeTiling, "prefill": PrefillTiling, "shared": SharedTiling}

_POWERS = tuple(2**exponent for exponent in range(11))
_ALLOWED = {
    "tile_tokens": _POWERS[4:9],
    "tile_rows": _POWERS[4:9],
    "num_warps": _POWERS[:5],
    "tiles_in_flight": range(1, 8),
    "programs_per_sm": range(1, 33),
    "min_chunk": range(1, 1025),
    "head_dim": range(16, 257, 16),
    "group": range(1, 1025),
    "query_bytes": (2, 4),
    "kv_bytes": (1, 2, 4),
}


class Tuned(NamedTuple):
    """What one tiling is for."""

    kernel: str  # of TILINGS
    capability: tuple[int, int]  # of the GPU
    operands: Operands


class Entry(NamedTuple):
    """A tiling of the table, and how it was found."""

    tiling: Tiling
    gpu: str
    gain: float  # share of the time that it saves, beside the rule's
    spread: float  # of the measurements that say so


def choose_decode_tiling(limits: DeviceLimits, operands: Operands, num_rows: int = 0) -> DecodeTiling:
    """How to cut up launches of decode attention over ``num_rows`` (sequence, KV head) pairs on this device."""
    found = _TABLE.get(Tuned("decode", limits.capability, operands))
    return found.tiling if found and isinstance(found.tiling, DecodeTiling) else decode_rule(limits, operands, num_rows)


def choose_prefill_tiling(limits: DeviceLimits, operands: Operands, num_rows: int) -> PrefillTiling:
    """How to cut up a launch of prefill attention over ``num_rows`` (query, head) pairs of each KV head."""
    found = _TABLE.get(Tuned("prefill", limits.capability, operands))
    if found and isinstance(found.tiling, PrefillTiling) and found.tiling.tile_rows <= num_rows:
        return found.tiling
    return prefill_rule(limits, operands, num_rows)


def choose_shared_tiling(limits: DeviceLimits, operands: Operands) -> SharedTiling:
    """How to cut up launches over shared runs on this device; also how many members a tile of a run has."""
    found = _TABLE.get(Tuned("shared", limits.capability, operands))
    return found.tiling if found and isinstance(found.tiling, SharedTiling) else shared_rule(limits, operands)


def read_table(path: Path) -> dict[Tuned, Entry]:
    """The table in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a table that ``table_text`` writes, naming what is wrong and where.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise ValueError(f"{path} is no table of tilings of version {VERSION}; `pbench kernels tune` writes one")
    table: dict[Tuned, Entry] = {}
    entries = document.get("tilings")
    if not isinstance(entries, list):
        raise ValueError(f"{path}: tilings is missing or no list")
    for index, fields in enumerate(entries):
        place = f"{path}: tilings[{index}]"
        tuned, entry = _read_entry(fields, place)
        if tuned in table:
            raise ValueError(f"{place} is for what an entry before it is for")
        table[tuned] = entry
    return table


def table_text(table: Mapping[Tuned, Entry]) -> str:
    """What ``read_table`` reads: JSON, in an order that does not depend on when an entry was found."""
    entries = [
        {
            "kernel": tuned.kernel,
            "capability": list(tuned.capability),
            "operands": tuned.operands._asdict(),
            "tiling": entry.tiling._asdict(),
            "gpu": entry.gpu,
            "gain": entry.gain,
            "spread": entry.spread,
        }
        for tuned, entry in sorted(table.items())
    ]
    return json.dumps({"version": VERSION, "tilings": entries}, indent=1) + "\n"


def _read_entry(fields: Any, place: str) -> tuple[Tuned, Entry]:
    if not isinstance(fields, dict):
        raise ValueError(f"{place} is {fields!r}; expected an object")
    kernel, capability = fields.get("kernel"), fields.get("capability")
    if not isinstance(kernel, str) or kernel not in TILINGS:
        raise ValueError(f"{place}.kernel is {kernel!r}; expected one of {', '.join(TILINGS)}")
    if not (isinstance(capability, list) and [type(number) for number in capability] == [int, int]):
        raise ValueError(f"{place}.capability is {capability!r}; expected two integers, as [9, 0]")
    operands = Operands(**_numbers(fields.get("operands"), Operands._fields, f"{place}.operands"))
    kind = TILINGS[kernel]
    tiling = kind(**_numbers(fields.get("tiling"), kind._fields, f"{place}.tiling"))
    gpu, gain, spread = fields.get("gpu"), fields.get("gain"), fields.get("spread")
    if not isinstance(gpu, str) or not isinstance(gain, float) or not isinstance(spread, float):
        raise ValueError(f"{place} does not say on which gpu, with what gain and spread it was measured")
    return Tuned(kernel, (capability[0], capability[1]), operands), Entry(tiling, gpu, gain, spread)


def _numbers(fields: Any, names: tuple[str, ...], place: str) -> dict[str, int]:
    if not isinstance(fields, dict) or set(fields) != set(names):
        raise ValueError(f"{place} is {fields!r}; expected an object of {', '.join(names)}")
    for name, number in fields.items():
        if type(number) is not int or number not in _ALLOWED[name]:
            allowed = _ALLOWED[name]
            raise ValueError(f"{place}.{name} is {number!r}; expected one of {', '.join(map(str, allowed))}")
    return fields


_TABLE = read_table(TABLE_PATH)
