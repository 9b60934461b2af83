"""The checks of a run: of an engine's repeats together, and of the engines against each other."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pbench.results import METRICS, WIDE_SPREAD_PCT, Check, EngineResult
from pbench.units import format_number, format_quantity

_TIMED_UNITS = ("tok/s", "req/s", "s", "ms", "J")
_TOKENS = ("num_prompt_tokens", "num_output_tokens")
_NUM_NAMED = 3
_EQUAL_POOL_RATIO = 0.01


def check_spread(engine: EngineResult) -> Check | None:
    """Whether the repeats agree; None of a single one."""
    timed = {metric.name: metric for metric in METRICS if metric.unit in _TIMED_UNITS}
    spreads = [
        (interval.spread_pct, timed[name].label)
        for name, interval in engine.intervals.items()
        if name in timed and interval.spread_pct is not None
    ]
    if not spreads:
        return None
    wide = sorted((one for one in spreads if one[0] > WIDE_SPREAD_PCT), reverse=True)
    speed = engine.intervals.get("output_tokens_per_s")
    figure = speed.spread_pct if speed is not None else None
    detail = "" if figure is None else f"output tokens/s within {format_quantity(figure, '%')}"
    if wide:
        named = "; ".join(f"{label} {format_quantity(spread, '%')}" for spread, label in wide[:_NUM_NAMED])
        more = f" and {len(wide) - _NUM_NAMED} more" if len(wide) > _NUM_NAMED else ""
        detail = f"{detail}; more than {WIDE_SPREAD_PCT:g} % apart are {named}{more}".removeprefix("; ")
    return Check("repeats agree", "warn" if wide else "pass", detail, figure, "%")


def check_run(engines: Sequence[EngineResult], workload: Mapping[str, Any]) -> tuple[Check, ...]:
    """The checks of the engines of one run against each other."""
    return tuple(_checks(engines, workload))


def _checks(engines: Sequence[EngineResult], workload: Mapping[str, Any]) -> Iterator[Check]:
    broken = [f"{engine.spec}: {engine.status}" for engine in engines if engine.status != "complete"]
    detail = "; ".join(broken) or "all complete"
    yield Check("every engine ran to its end", "fail" if broken else "pass", detail, len(broken))
    yield _kept(workload.get("num_dropped_too_long"))
    if len(engines) > 1:
        yield _same_work(engines)
        yield _equal_pools(engines)


def _kept(num_dropped: int | None) -> Check:
    name = "no request dropped"
    if num_dropped is None:
        return Check(name, "unknown", "the workload does not say")
    if num_dropped:
        detail = f"{format_number(num_dropped)} requests too long for the model were dropped, in all engines alike"
        return Check(name, "warn", detail, num_dropped)
    return Check(name, "pass", "none of those read was too long for the model", 0)


def _same_work(engines: Sequence[EngineResult]) -> Check:
    """Every repeat of every engine took in and gave out as many tokens."""
    name = "same tokens in and out"
    if any(engine.status != "complete" for engine in engines):
        return Check(name, "unknown", "an engine did not come to its end")
    columns = [[value for engine in engines for value in engine.values(metric)] for metric in _TOKENS]
    totals = sorted(set(zip(*columns, strict=True)))
    detail = " against ".join(f"{format_number(given)} in, {format_number(made)} out" for given, made in totals)
    return Check(name, "pass" if len(totals) == 1 else "fail", detail, len(totals))


def _equal_pools(engines: Sequence[EngineResult]) -> Check:
    name = "equal KV pools"
    pools = [engine.pool.get("pool_bytes") for engine in engines]
    known = [pool for pool in pools if pool is not None]
    if len(known) < len(pools):
        return Check(name, "unknown", "an engine ended before it had a pool, or does not tell of it")
    detail = " and ".join(format_quantity(pool, "bytes") for pool in known)
    is_equal = max(known) - min(known) <= _EQUAL_POOL_RATIO * max(known)
    return Check(name, "pass" if is_equal else "warn", detail)
