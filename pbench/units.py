"""Quantities as people write and read them: bytes, counts, durations, and text that is safe to print."""

import re
from pathlib import Path

from pbench.errors import UsageError

_BYTE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)


def parse_bytes(text: str, option: str) -> int:
    """Bytes of a size such as ``8GiB``, ``24MB`` or ``1048576``; a fraction of a byte is dropped.

    Raises:
        UsageError: it is no size, or less than one byte; the message names ``option``.

    """
    match = _SIZE.fullmatch(text)
    factor = _BYTE_UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{option} {printable(text)!r} is not a size; write it like 8GiB, 24MB or 1048576")
    whole, _, fraction = match[1].partition(".")
    # Integers throughout: a float would round sizes above 2**53 bytes.
    num_bytes = int(whole + fraction) * factor // int(f"1{len(fraction) * '0'}")
    if num_bytes < 1:
        raise UsageError(f"{option} {text!r} is less than one byte")
    return num_bytes


def format_bytes(num_bytes: float) -> str:
    """A size with a binary unit and three or four digits: ``512 B``, ``1.5 MiB``, ``8 GiB``."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{_trimmed(value)} {unit}"
        value /= 1024
    return f"{_trimmed(value)} TiB"


def format_number(value: float) -> str:
    """A number for a table: integers whole with thousands separated, others with about four digits."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return _trimmed(value)


def format_quantity(value: float, unit: str) -> str:
    """A number with its unit, as ``Metric.unit`` spells it; bytes get a binary unit."""
    if unit == "bytes":
        return format_bytes(value)
    return f"{format_number(value)} {unit}" if unit else format_number(value)


def printable(text: str) -> str:
    """``text`` with every character that a terminal might act on written as an escape.

    Names of files, devices and workloads are other people's text: a control character in them must not move the
    cursor, and a bidirectional mark must not reorder the line.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def slug(text: str) -> str:
    """``text`` as part of a file name: ``contiguous:max`` becomes ``contiguous-max``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60] or "unnamed"


def display_path(path: Path) -> str:
    """``path`` relative to the current folder when it lies below it, made printable."""
    try:
        return printable(str(path.resolve().relative_to(Path.cwd())))
    except ValueError:
        return printable(str(path))


def _trimmed(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 4
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
