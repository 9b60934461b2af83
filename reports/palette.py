"""The colours of the page: Okabe and Ito's colour-blind-safe set, each with a shade for light and for dark paper.

Charts are built with the light shades; the page swaps them for the dark ones when the theme changes. Colour never
stands alone: lines differ in dash, areas and bars in pattern.

Source: M. Okabe, K. Ito, "Color Universal Design", 2008 (https://jfly.uni-koeln.de/color/).
"""

from typing import NamedTuple


class Shade(NamedTuple):
    """One colour of the page, as CSS hex, on light and on dark paper. Light shades are distinct: they are keys."""

    light: str
    dark: str


class Ink(NamedTuple):
    """How an engine's lines are drawn in every chart."""

    shade: Shade
    dash: str  # plotly's name


class Kind(NamedTuple):
    """One part of the pool's partition (KVUsage): its column, name, colour, pattern and one-line explanation."""

    column: str
    label: str
    shade: Shade
    pattern: str  # plotly's fill pattern; "" is plain
    help: str
    text_shade: Shade  # readable on ``shade``


TEXT = Shade("#1b2430", "#e6ebf1")
MUTED = Shade("#566273", "#9aa7b6")
GRID = Shade("#e3e7ec", "#2b333d")
SURFACE = Shade("#fffffe", "#171c23")
ON_BRIGHT = Shade("#14181d", "#101419")  # text on a bright fill, whatever the paper

BLUE = Shade("#0072b2", "#5ab0ea")
ORANGE = Shade("#c47f00", "#f2b134")
GREEN = Shade("#009e73", "#20b98c")
YELLOW = Shade("#e8d820", "#efe14a")
VERMILLION = Shade("#d55e00", "#f07a2b")
PURPLE = Shade("#cc79a7", "#d98fb8")
SKY = Shade("#56b4e9", "#3f93c4")
GREY = Shade("#d5dae0", "#39424d")
DARK_GREY = Shade("#7a8694", "#8995a3")

SHADES = {
    "text": TEXT,
    "muted": MUTED,
    "grid": GRID,
    "surface": SURFACE,
    "on-bright": ON_BRIGHT,
    "blue": BLUE,
    "orange": ORANGE,
    "green": GREEN,
    "yellow": YELLOW,
    "vermillion": VERMILLION,
    "purple": PURPLE,
    "sky": SKY,
    "grey": GREY,
    "dark-grey": DARK_GREY,
}

INKS = (
    Ink(BLUE, "solid"),
    Ink(ORANGE, "dash"),
    Ink(PURPLE, "dot"),
    Ink(GREEN, "dashdot"),
    Ink(VERMILLION, "longdash"),
    Ink(DARK_GREY, "longdashdot"),
)

KINDS = (
    Kind(
        "token_state",
        "token states",
        GREEN,
        "",
        "slots that hold the KV of live tokens; a shared block counts once",
        ON_BRIGHT,
    ),
    Kind("reserved", "reserved", YELLOW, "/", "slots held now that the same sequence will fill later", ON_BRIGHT),
    Kind(
        "internal",
        "internal",
        VERMILLION,
        "x",
        "slots held that will never be filled: reserved too far, or a block's tail",
        ON_BRIGHT,
    ),
    Kind(
        "external",
        "external",
        PURPLE,
        "\\",
        "free slots that the next request cannot use because they are not contiguous",
        ON_BRIGHT,
    ),
    Kind("cached", "cached", SKY, ".", "slots kept only for the prefix cache, given up at once when needed", ON_BRIGHT),
    Kind("free", "free", GREY, "", "the rest of the pool", TEXT),
)
WASTE_COLUMNS = ("reserved", "internal", "external")


def ink(index: int) -> Ink:
    """The ink of the ``index``-th engine on the page; they repeat after six."""
    return INKS[index % len(INKS)]


def dark_by_light() -> dict[str, str]:
    """Light hex -> dark hex, for the page's script."""
    return {shade.light: shade.dark for shade in SHADES.values()}


def shade_variables() -> str:
    """CSS declarations of one variable a shade (``--blue: light-dark(#0072b2, #5ab0ea);``)."""
    return " ".join(f"--{name}: light-dark({shade.light}, {shade.dark});" for name, shade in SHADES.items())
