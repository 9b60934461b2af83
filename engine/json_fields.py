"""Typed access to the fields of a JSON file that somebody else wrote."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from pbench.engine.errors import ConfigError, EngineError


def read_json_object(path: Path, error: type[EngineError]) -> dict[str, object]:
    """Read the JSON object in the file ``path``.

    Raises:
        EngineError: of the class ``error``: the file cannot be read, or holds no JSON object.

    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        raise error(f"{path} cannot be read as JSON: {cause}") from cause
    if not isinstance(values, dict):
        raise error(f"{path} holds {shown(values)} where a JSON object must stand")
    return values


class JsonFields:
    """One JSON object whose fields are read by name and type. A field that is null counts as absent.

    Every reader takes a default; without one the field is required. A field that is missing, or of another
    type or range, raises ConfigError naming the field and its value; the caller adds the file.
    """

    def __init__(self, values: Mapping[str, object], prefix: str = "") -> None:
        self.values = values
        self.prefix = prefix  # of a field's name in messages: "rope_scaling." inside the object of that name

    def child(self, name: str) -> "JsonFields | None":
        """Return the object under ``name``, or None when it is absent or empty."""
        value = self._value(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return JsonFields(value, f"{self.prefix}{name}.") if value else None

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number of at least ``least``."""
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self._wrong(name, value, f"a whole number of at least {least}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a finite number above 0."""
        value = self._value(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not _is_positive(value):
            raise self._wrong(name, value, "a finite number above 0")
        return float(value)

    def boolean(self, name: str, default: bool | None = None) -> bool:
        """Return true or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def texts(self, name: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self._value(name, default)
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, value, "a list of strings")
        return tuple(value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Return the one token id or the list of them that stands there; none when the field is absent."""
        value = self.values.get(name)
        items = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items):
            raise self._wrong(name, value, "a token id or a list of token ids")
        return tuple(cast("list[int]", items))

    def _value(self, name: str, default: object) -> object:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise ConfigError(f"{self.prefix}{name} is missing")
        return default

    def _wrong(self, name: str, value: object, wanted: str) -> ConfigError:
        return ConfigError(f"{self.prefix}{name} is {shown(value)}; it must be {wanted}")


def _is_positive(value: float) -> bool:
    try:
        return math.isfinite(value) and value > 0
    except OverflowError:  # a whole number beyond every float
        return False


def shown(value: object) -> str:
    """Write the value as a message shows it: on one line, and not at any length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
