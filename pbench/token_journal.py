"""Which tokens were given out when: the one table with a row for every token, so it is packed.

For every step that gave out tokens: its number, how many, their requests, and which of the request's sequences each
is of; all as 32-bit integers of the machine's byte order. A block that a kill cut in half is the last one, and is left
out.
"""

from array import array
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from pbench.engine.records import TokenOutput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TOKENS_FILE = "tokens.bin"
FLUSH_BYTES = 1 << 16

_request_id, _sample_index = itemgetter(0), itemgetter(1)


class TokenFile:
    """Appends the tokens of steps to a file."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb", buffering=FLUSH_BYTES)

    def append(self, step: int, tokens: Sequence[TokenOutput]) -> None:
        """Add the tokens that a step gave out."""
        if tokens:
            block = array("i", (step, len(tokens)))
            block.extend(map(_request_id, tokens))
            block.extend(map(_sample_index, tokens))
            self._stream.write(block)

    def close(self) -> None:
        """Flush and close."""
        self._stream.close()


def read_tokens(path: Path) -> "dict[str, npt.NDArray[np.int32]]":
    """One entry a token: "request_id", "sequence" and "step". Empty when the file does not exist."""
    import numpy as np

    content = path.read_bytes() if path.exists() else b""
    numbers = np.frombuffer(content[: len(content) // 4 * 4], dtype=np.int32)
    starts, counts, steps = [], [], []
    at = 0
    while at + 2 <= len(numbers) and (end := at + 2 + 2 * int(numbers[at + 1])) <= len(numbers):
        starts.append(at + 2)
        steps.append(int(numbers[at]))
        counts.append(int(numbers[at + 1]))
        at = end
    pairs = list(zip(starts, counts, strict=True))
    nothing = np.empty(0, dtype=np.int32)
    return {
        "request_id": np.concatenate([nothing, *(numbers[start : start + num] for start, num in pairs)]),
        "sequence": np.concatenate([nothing, *(numbers[start + num : start + 2 * num] for start, num in pairs)]),
        "step": np.repeat(np.array(steps, dtype=np.int32), counts),
    }
