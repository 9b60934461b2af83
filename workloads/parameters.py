"""Named parameters of built-in workloads and file formats, and the values that a user gives them."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pbench.workloads.errors import WorkloadError

Value = int | float | str
Values = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number or a simple string. The kind of the default (int, float, str) is the kind of every value."""

    name: str
    default: Value
    help: str
    low: float = 1  # the smallest value that is allowed; without meaning for strings
    high: float = 1_000_000_000
    choices: tuple[Value, ...] = ()  # when given, nothing else is allowed

    @property
    def range(self) -> str:
        """What is allowed, in words."""
        if self.choices:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        if isinstance(self.default, str):
            return "text"
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        return f"{kind} in {_shown(self.low)}..{_shown(self.high)}"

    def parse(self, text: str, owner: str) -> Value:
        """The value that ``text`` stands for.

        Raises:
            WorkloadError: it is of another kind or out of range; names the parameter and its range.
        """
        try:
            value: Value = type(self.default)(text.strip())
        except ValueError:
            value = math.nan
        if isinstance(value, str):
            is_allowed = not self.choices or value in self.choices
        else:
            is_allowed = value in self.choices if self.choices else self.low <= value <= self.high
        if not is_allowed:
            raise WorkloadError(f"{owner}: {self.name}={text} cannot be; {self.name} is {self.range} ({self.help})")
        return value


def nearest_name(name: str, known: Sequence[str]) -> str:
    """A hint ``; did you mean 'x'?``, or nothing when no known name is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def resolve(parameters: Sequence[Parameter], overrides: Mapping[str, str], owner: str) -> dict[str, Value]:
    """Defaults with the overrides put in, in the order of the parameters.

    A pair of parameters X_min and X_max must be in order.

    Raises:
        WorkloadError: an unknown name (with the nearest known one), a wrong value, or X_min above X_max.
    """
    known = {parameter.name: parameter for parameter in parameters}
    for name in overrides:
        if name not in known:
            listed = f"its parameters are {', '.join(known)}" if known else "it has no parameters"
            raise WorkloadError(f"{owner} has no parameter {name!r}{nearest_name(name, list(known))} ({listed})")
    values = {
        name: parameter.parse(overrides[name], owner) if name in overrides else parameter.default
        for name, parameter in known.items()
    }
    for name, value in values.items():
        upper_name = name.removesuffix("_min") + "_max"
        if name.endswith("_min") and upper_name in values and _is_above(value, values[upper_name]):
            raise WorkloadError(f"{owner}: {name}={value} is above {upper_name}={values[upper_name]}")
    return values


def _shown(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


def _is_above(low: Value, high: Value) -> bool:
    return not isinstance(low, str) and not isinstance(high, str) and low > high
