"""The throughput gate's pictures: the ratio of every workload beside the band that passes, and every pair by itself."""

import plotly.graph_objects as go

from pbench.gate.throughput_result import Pair, ThroughputResult, WorkloadResult
from pbench.reports.charts.forest import Ratio, forest_chart
from pbench.reports.charts.panel import Chart, Panel, Table, new_figure, plain
from pbench.reports.palette import BLUE, DARK_GREY, GREY, ORANGE, TEXT, VERMILLION
from pbench.reports.quantity import NOT_APPLICABLE, TIMES, format_number, format_quantity


def forest_panel(result: ThroughputResult) -> Panel:
    """One row a workload: the ratio at its last look, its interval, and the pairs that counted."""
    ratios = [
        Ratio(one.name, look.ratio, (look.low, look.high), tuple(pair.ratio for pair in one.counted_pairs))
        for one in result.workloads
        if one.looks
        for look in one.looks[-1:]
    ]
    rows = tuple(_look_row(one, index) for one in result.workloads for index in range(len(one.looks)))
    allowed = f"{result.delta:.1%}"
    charts: tuple[Chart, ...] = ()
    if ratios:
        summary = (
            f"Output tokens/s of {result.head.name} over {result.base.name}. The grey band is the loss that passes,"
            f" at most {allowed}; a mark is a pair."
        )
        charts = (forest_chart("gate-forest", "Ratio by workload", summary, ratios, (1 - result.delta, 1.0)),)
    return Panel(
        "gate",
        "Head over base",
        "Head passes where its whole interval lies to the right of the band's left end. It fails where it is"
        " significantly slower than base and its ratio is at that end or beyond it. Else more pairs are run, as long as"
        " any are left.",
        charts,
        Table(("workload", "look", "pairs", "ratio", "interval", "confidence", "p", "significant at", "verdict"), rows),
        missing="" if charts else "No workload came to its first look.",
    )


def pairs_panel(result: ThroughputResult) -> Panel:
    """One chart a workload: the ratios in the order in which the pairs ran, first those of base against itself."""
    drawn = [one for one in result.workloads if one.pairs or one.aa]
    rows = tuple(row for one in drawn for row in _pair_rows(one))
    return Panel(
        "pairs",
        "Pair by pair",
        "Each pair is a run of base and a run of head, one right after the other. Pairs of base against itself show"
        " what the machine can tell apart. Hollow pairs are left out, for a reason that was declared before the first"
        " run.",
        tuple(_pairs_chart(f"pairs-w{index}", one, result) for index, one in enumerate(drawn)),
        Table(("workload", "pair", "first", "base", "head", "ratio", "left out because"), rows),
        missing="" if drawn else "No pair was run.",
    )


def _pairs_chart(key: str, one: WorkloadResult, result: ThroughputResult) -> Chart:
    figure = new_figure("pair", "head over base", hovermode="closest")
    figure.add_hrect(y0=1 - result.delta, y1=1, fillcolor=GREY.light, opacity=0.6, line_width=0, layer="below")
    figure.add_hline(y=1, line={"color": TEXT.light, "width": 1})
    aa = one.aa.pairs if one.aa else ()
    _add_pairs(figure, "base against itself", aa, -len(aa), DARK_GREY.light, "square")
    _add_pairs(figure, "head against base", one.pairs, 0, BLUE.light, "circle")
    # A look is taken after so many pairs that count; it stands at the last of them.
    counted = [place for place, pair in enumerate(one.pairs, 1) if not pair.discarded]
    looks = [look for look in one.looks if 0 < look.num_pairs <= len(counted)]
    if looks:
        figure.add_trace(
            go.Scatter(
                x=[counted[look.num_pairs - 1] for look in looks],
                y=plain([look.ratio for look in looks], 5),
                mode="markers",
                name="mean so far, with its interval",
                marker={"symbol": "diamond", "size": 11, "color": ORANGE.light},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": plain([look.high - look.ratio for look in looks], 5),
                    "arrayminus": plain([look.ratio - look.low for look in looks], 5),
                    "color": ORANGE.light,
                },
                hovertemplate="%{y:.4g}" + TIMES + "<extra>look</extra>",
            )
        )
    if aa and one.pairs:
        figure.add_vline(x=0.5, line={"color": DARK_GREY.light, "width": 1, "dash": "dot"})
    places = [*range(1 - len(aa), 1), *range(1, len(one.pairs) + 1)]
    step = max(1, len(places) // 12)
    figure.update_xaxes(
        tickvals=places[::step],
        ticktext=[f"A{place + len(aa)}" if place < 1 else str(place) for place in places][::step],
        tickangle=0,
    )
    spread = ""
    if one.aa and one.aa.spread is not None:
        spread = f" Base against itself scatters by {format_number(one.aa.spread * 100, 2)} % from pair to pair."
    return Chart(key, one.name, f"{one.verdict}: {one.reason.rstrip('.')}.{spread}", figure, 320)


def _add_pairs(figure: go.Figure, name: str, pairs: tuple[Pair, ...], offset: int, color: str, symbol: str) -> None:
    for is_kept in (True, False):
        chosen = [(place, pair) for place, pair in enumerate(pairs, 1) if (not pair.discarded) == is_kept]
        if not chosen:
            continue
        figure.add_trace(
            go.Scatter(
                x=[place + offset for place, _ in chosen],
                y=plain([pair.ratio for _, pair in chosen], 5),
                mode="markers",
                name=name if is_kept else f"{name}, left out",
                marker={"size": 9, "color": color if is_kept else VERMILLION.light, "symbol": symbol}
                | ({} if is_kept else {"symbol": f"{symbol}-open"}),
                customdata=["base first" if pair.is_base_first else "head first" for _, pair in chosen],
                hovertemplate="%{y:.4g}" + TIMES + ", %{customdata}<extra></extra>",
            )
        )


def _look_row(one: WorkloadResult, index: int) -> tuple[str, ...]:
    look = one.looks[index]
    return (
        one.name,
        str(index + 1),
        str(look.num_pairs),
        f"{look.ratio:.4f}{TIMES}",
        f"{look.low:.4f} to {look.high:.4f}",
        f"{look.confidence:.1%}",
        f"{look.p_value:.2g}",
        f"{look.p_threshold:.2g}",
        look.verdict,
    )


def _pair_rows(one: WorkloadResult) -> list[tuple[str, ...]]:
    sets = ((one.aa.pairs if one.aa else (), "A"), (one.pairs, ""))
    return [
        (
            one.name,
            f"{mark}{pair.number}",
            "base" if pair.is_base_first else "head",
            format_quantity(pair.base_tokens_per_s, "tok/s"),
            format_quantity(pair.head_tokens_per_s, "tok/s"),
            f"{pair.ratio:.4f}{TIMES}",
            "; ".join(pair.discarded) or NOT_APPLICABLE,
        )
        for pairs, mark in sets
        for pair in pairs
    ]
