"""Where a command's text goes: to the terminal, or as a whole into a file that the user named."""

from pathlib import Path

from pbench.errors import UsageError
from pbench.results import write_atomically
from pbench.units import display_path


def check_out(out: Path | None, option: str = "--out") -> None:
    """Refuse a file, named by ``option``, that cannot be created before the work that it is to hold is done.

    Raises:
        UsageError: the file's folder does not exist.

    """
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"{option} {display_path(out)}: there is no folder {display_path(out.parent)}")


def write_out(out: Path, text: str) -> None:
    """Write the text, atomically.

    Raises:
        UsageError: the file cannot be written.

    """
    try:
        write_atomically(out, lambda stream: stream.write(text.encode()))
    except OSError as error:
        raise UsageError(f"--out {display_path(out)} cannot be written: {error.strerror}") from error
