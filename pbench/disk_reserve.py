"""Room on the disk that is kept until it is needed: so that a run on a full disk can still say how it ended."""

from pathlib import Path

NUM_BYTES = 1 << 18  # many times what run.json takes


class DiskReserve:
    """A file that only takes space. Where even that does not fit there is no reserve."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".reserve"
        try:
            self._path.write_bytes(bytes(NUM_BYTES))
        except OSError:
            self.release()

    def release(self) -> None:
        """Give the room back."""
        self._path.unlink(missing_ok=True)
