"""The targets of ``--slo``: latencies that a request must keep to count as served."""

import re

from pbench.errors import UsageError
from pbench.units import printable

LATENCIES = ("ttft", "tpot", "e2e")

_UNITS_MS = {"ms": 1.0, "s": 1000.0}
_TARGET = re.compile(r"\s*([a-z0-9]+)\s*=\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s)\s*", re.ASCII)


def parse_targets(text: str | None) -> dict[str, float]:
    """Milliseconds by the name of a latency, of ``ttft=500ms,tpot=50ms``; empty without a text.

    Raises:
        UsageError: a part is no target, or names a latency a second time.

    """
    targets: dict[str, float] = {}
    for part in [] if text is None else text.split(","):
        match = _TARGET.fullmatch(part)
        if match is None or match[1] not in LATENCIES:
            raise UsageError(
                f"--slo {printable(part)!r} is no target; write it like ttft=500ms, of {', '.join(LATENCIES)}"
            )
        if match[1] in targets:
            raise UsageError(f"--slo names {match[1]} twice; give every latency one target")
        targets[match[1]] = float(match[2]) * _UNITS_MS[match[3]]
    return targets
