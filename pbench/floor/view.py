"""How an engine's distance from the floor is written: for a terminal, a program, a document."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TextIO

from pbench.floor.engine_floor import OUTSIDE_STEPS, EngineFloor, Stretch
from pbench.markdown import escaped
from pbench.text_tables import print_table, write_markdown_table
from pbench.units import format_number, printable

NO_FLOOR = "-"
_LEAST_WIDTH = 130  # of a terminal: one that is narrower folds whole lines, which reads better than folded cells
_STEPS = ("steps", "number", "time", "floor", "share", "weights", "KV", "arithmetic", "bound by", "gap", "of all gaps")
_PHASES = ("phase", "on the", "of steps", "mean of a step", "share")

EXPLANATION = (
    "floor: the longer of reading weights and KV (a shared block once) at the copy bandwidth and of the FLOPs at the"
    " matrix rate, step by step; with prompts at least so much",
    "weights, KV, arithmetic: what each would take alone at the ceilings; share: floor over time",
)
_OF_PHASES = (
    "phases: on the host of all steps, as a share of the time; on the device of the steps that were timed within, as a"
    " share of what it took for these. Where steps overlap, the host works beside the device; on the CPU the device is"
    " the host in its launch"
)
_OF_REPLAYS = "replay: all that a CUDA graph holds; a run with --no-cuda-graphs tells attention from matrix products"


def write_table(floors: Sequence[EngineFloor], stream: TextIO) -> None:
    """Write tables for the terminal, each engine's under its sentence."""
    from pbench.console import console_for

    console = console_for(stream)
    console.width = max(console.width, _LEAST_WIDTH)

    def line(text: str = "") -> None:
        console.print(printable(text), markup=False, soft_wrap=True)

    for one in floors:
        line(_title(one))
        for headings, rows, num_left in _tables(one):
            line()
            print_table(console, headings, rows, num_left=num_left)
        line()
        line(sentence(one))
        line()
    for note in _notes(floors):
        line(f"note: {note}")


def write_markdown(floors: Sequence[EngineFloor], stream: TextIO) -> None:
    """Write the same for a document."""
    for one in floors:
        stream.write(f"**{escaped(printable(_title(one)))}**\n")
        for headings, rows, num_left in _tables(one):
            write_markdown_table(stream, headings, rows, num_left=num_left)
        stream.write(f"\n{escaped(printable(sentence(one)))}\n\n")
    for note in _notes(floors):
        stream.write(f"- {escaped(note)}\n")


def write_json(floors: Sequence[EngineFloor], stream: TextIO) -> None:
    """Write everything unrounded, seconds throughout."""
    document = [
        {
            "run_id": one.run_id,
            "workload": one.workload,
            "engine": one.engine,
            "repeat": one.repeat,
            "ceilings": one.ceilings._asdict(),
            "whole": _document(one.whole),
            "stretches": [_document(stretch) for stretch in one.stretches],
            "phases": [asdict(part) for part in one.phases],
            "largest_gap": one.largest_gap.name,
            "sentence": sentence(one),
        }
        for one in floors
    ]
    stream.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


WRITERS: Mapping[str, Callable[[Sequence[EngineFloor], TextIO], None]] = {
    "table": write_table,
    "markdown": write_markdown,
    "json": write_json,
}


def sentence(floor: EngineFloor) -> str:
    """The distance in words, and what the largest part of it is."""
    whole, largest = floor.whole, floor.largest_gap
    if whole.gap_s <= 0:
        return f"{floor.engine}: its {_seconds(whole.time_s)} are not above the floor; the ceilings are too low"
    above = f"{_seconds(whole.gap_s)} of {_seconds(whole.time_s)} ({_percent(whole.gap_s, whole.time_s)})"
    said = f"{floor.engine}: {above} are above the floor. The largest gap is "
    if largest.name == OUTSIDE_STEPS:
        said += f"{_seconds(largest.time_s)} outside steps"
    else:
        mean_s, floor_s = largest.time_s / largest.num_steps, largest.floor_s / largest.num_steps
        said += (
            f"{_seconds(largest.gap_s)} in {format_number(largest.num_steps)} step{'s' * (largest.num_steps > 1)} with"
            f" {largest.name}:"
            f" {_seconds(mean_s)} each, and {_seconds(floor_s)} at the floor, set by {largest.bound_by}"
        )
    host, device = floor.longest_phase("host"), floor.longest_phase("device")
    if host is not None:
        said += f". The host was in {host.phase} for {_percent(host.share_pct, 100)} of the time"
        if device is not None:
            said += (
                f"; within {device.steps} steps the device was in {device.phase} for {_percent(device.share_pct, 100)}"
            )
    return f"{said}."


def _title(floor: EngineFloor) -> str:
    roof = floor.ceilings
    gb_per_s, tflop_per_s = format_number(roof.bytes_per_s / 1e9), format_number(roof.flops_per_s / 1e12)
    return (
        f"{floor.engine}, workload {floor.workload}, run {floor.run_id}; ceilings {gb_per_s} GB/s and {tflop_per_s}"
        f" TFLOP/s {roof.source}"
    )


def _tables(floor: EngineFloor) -> Iterator[tuple[Sequence[str], list[tuple[str, ...]], int]]:
    """Headings, rows, and how many columns are left-aligned."""
    whole = floor.whole
    yield _STEPS, [_cells(stretch, whole) for stretch in (*floor.stretches, whole)], 1
    if floor.phases:
        rows: list[tuple[str, ...]] = [
            (
                part.phase,
                part.where,
                f"{format_number(part.num_steps)} {part.steps}" if part.where == "device" else part.steps,
                _seconds(part.mean_s),
                _percent(part.share_pct, 100),
            )
            for part in floor.phases
        ]
        yield _PHASES, rows, 3


def _cells(stretch: Stretch, whole: Stretch) -> tuple[str, ...]:
    if not stretch.num_steps:
        floor: tuple[str, ...] = (NO_FLOOR,) * 6
    else:
        parts = (stretch.weights_s, stretch.kv_s, stretch.arithmetic_s)
        floor = (
            _seconds(stretch.floor_s),
            _percent(stretch.floor_s, stretch.time_s),
            *map(_seconds, parts),
            stretch.bound_by or NO_FLOOR,
        )
    return (
        stretch.name,
        format_number(stretch.num_steps) if stretch.num_steps else NO_FLOOR,
        _seconds(stretch.time_s),
        *floor,
        _seconds(stretch.gap_s),
        _percent(stretch.gap_s, whole.gap_s),
    )


def _notes(floors: Sequence[EngineFloor]) -> Iterator[str]:
    yield from EXPLANATION
    phases = {part.phase for floor in floors for part in floor.phases}
    if phases:
        yield _OF_PHASES
    if "replay" in phases:
        yield _OF_REPLAYS


def _document(stretch: Stretch) -> dict[str, object]:
    return asdict(stretch) | {"gap_s": stretch.gap_s, "bound_by": stretch.bound_by}


def _seconds(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if abs(seconds) * factor >= 1:
            return f"{format_number(seconds * factor)} {unit}"
    return f"{format_number(seconds * 1e6)} us"


def _percent(part: float, whole: float) -> str:
    return f"{format_number(round(100 * part / whole, 1))} %" if whole else NO_FLOOR
