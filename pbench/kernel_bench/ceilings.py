"""What a machine reaches: the bandwidth of a large copy and the rate of a large matrix product."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbench.errors import UsageError
from pbench.units import display_path, printable


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured, not published."""

    device: str  # the name of the GPU or processor
    copy_bytes_per_s: float  # read and written together
    matrix_flops_per_s: float

    def least_us(self, num_bytes: int, flops: int) -> float:
        """No kernel that moves and computes so much is faster: the longer of the two times counts."""
        return max(num_bytes / self.copy_bytes_per_s, flops / self.matrix_flops_per_s) * 1e6


def read_ceilings(path: Path, option_name: str = "--ceilings") -> Ceilings:
    """The ceilings in a file that ``pbench kernels --json`` wrote, and that the user gave with ``option_name``.

    Raises:
        UsageError: there is no such file, or no such ceilings in it.

    """
    option = f"{option_name} {display_path(path)}"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{option} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{option} is not JSON; give a file that `pbench kernels --json FILE` wrote") from error
    fields = document.get("ceilings") if isinstance(document, Mapping) else None
    if not isinstance(fields, Mapping):
        raise UsageError(f"{option} has no ceilings; give a file that `pbench kernels --json FILE` wrote")
    return Ceilings(
        printable(str(fields.get("device"))),
        _rate(fields, "copy_bytes_per_s", option),
        _rate(fields, "matrix_flops_per_s", option),
    )


def _rate(fields: Mapping[str, Any], name: str, option: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UsageError(f"{option}: ceilings.{name} is {printable(repr(value))}; it must be a number above 0")
    return float(value)
