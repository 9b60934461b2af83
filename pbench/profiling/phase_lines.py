"""Where a step's time went, in a few lines for a person."""

from collections.abc import Iterator

from pbench.results import EngineResult
from pbench.summary.repeat import PhaseTime
from pbench.units import format_quantity, printable

_SMALL_PCT = 0.05  # less is not named


def phase_lines(engine: EngineResult) -> Iterator[str]:
    """A line for the host's time, and one for each kind of steps that were timed within."""
    groups: dict[tuple[str, str], list[PhaseTime]] = {}
    for one in engine.phases:
        groups.setdefault((one.where, one.steps), []).append(one)
    for (where, steps), parts in groups.items():
        whole_ms = sum(part.mean_ms for part in parts)
        shown = [
            f"{part.phase} {format_quantity(part.mean_ms, 'ms')} ({part.share_pct:.1f} %)"
            for part in parts
            if part.share_pct >= _SMALL_PCT
        ]
        yield f"{_title(engine, where, steps, parts[0])}: {format_quantity(whole_ms, 'ms')} = {' + '.join(shown)}"


def _title(engine: EngineResult, where: str, steps: str, part: PhaseTime) -> str:
    name = printable(engine.spec)
    if where == "host":
        return f"a step's time on the host ({name})"
    device = "the GPU" if engine.config.get("device") == "cuda" else "the CPU"
    how = "a step replayed from a CUDA graph" if steps == "replayed" else "a step launched kernel by kernel"
    return f"{how} on {device}, mean of {part.num_steps} ({name})"
