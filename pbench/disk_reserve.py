"""Room on the disk that is kept until it is needed: so that a run on a full disk can still say how it ended."""

from pathlib import Path

NUM_BYTES = 1 << 18  # many times what run.json takes


class DiskReserve:
    """A file in ``folder`` that only takes space."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".reserve"

    def take(self) -> None:
        """Take the room. Where it does not fit there is no reserve."""
        try:
            self._path.write_bytes(bytes(NUM_BYTES))
        except OSError:
            self.release()

    def release(self) -> None:
        """Give the room back."""
        self._path.unlink(missing_ok=True)
