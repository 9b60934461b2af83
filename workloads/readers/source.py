"""A text file that is read line by line, gzip or plain, and whose faults are named."""

import codecs
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pbench.workloads.errors import WorkloadError

_HEAD_BYTES = 64 * 1024
_MAX_LINE_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_GZIP_MAGIC = b"\x1f\x8b"


class Source:
    """A file of a user. Every fault raises WorkloadError with the file and, where there is one, the line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._num_lines = 0  # read so far
        if not path.exists():
            raise WorkloadError(f"{path} does not exist")
        if not path.is_file():
            raise WorkloadError(f"{path} is not a regular file")

    def fault(self, line: int, problem: str) -> WorkloadError:
        """An error that names file and line."""
        return WorkloadError(f"{self.path}, line {line}: {problem}")

    def head(self) -> str:
        """The first characters of the text, at most 64 KiB of them; what is not UTF-8 is replaced.

        Raises:
            WorkloadError: the file cannot be read, is empty, or is binary.
        """
        with self._open() as stream:
            start = stream.read(_HEAD_BYTES)
        if not start.strip():
            raise WorkloadError(f"{self.path} is empty: it has no requests")
        self._refuse_zero_bytes(start, 1)
        return start.decode("utf-8-sig", errors="replace")

    def lines(self) -> Iterator[tuple[int, str]]:
        """Line numbers, from 1, and lines without their end; blank lines are left out."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        with self._open() as stream:
            while line := stream.readline(_MAX_LINE_BYTES + 1):
                self._num_lines += 1
                if len(line) > _MAX_LINE_BYTES:
                    raise self.fault(self._num_lines, f"longer than {_MAX_LINE_BYTES} bytes; is this a text file?")
                text = self._decode(line, self._num_lines, decoder, is_final=True)
                if text.strip():
                    yield self._num_lines, text.rstrip("\r\n")

    def chunks(self) -> Iterator[str]:
        """The whole text in pieces of about a megabyte, for formats that are no lines."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        with self._open() as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield self._decode(chunk, self._num_lines + 1, decoder)
                self._num_lines += chunk.count(b"\n")
        self._decode(b"", self._num_lines + 1, decoder, is_final=True)

    def sha256(self) -> str:
        """Hash of the file's bytes as they lie on disk."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def _decode(self, data: bytes, number: int, decoder: codecs.IncrementalDecoder, *, is_final: bool = False) -> str:
        """Decode text that begins in line ``number``."""
        self._refuse_zero_bytes(data, number)
        try:
            return decoder.decode(data, is_final)
        except UnicodeDecodeError as error:
            line = number + error.object.count(b"\n", 0, error.start)
            byte = error.object[error.start]
            raise self.fault(line, f"not UTF-8 text: byte 0x{byte:02x} cannot stand there") from None

    def _refuse_zero_bytes(self, data: bytes, number: int) -> None:
        if b"\0" in data:
            line = number + data.count(b"\n", 0, data.index(b"\0"))
            raise self.fault(line, "has a zero byte: this is binary, not text in UTF-8 (or gzipped text)")

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        self._num_lines = 0
        try:
            with self.path.open("rb") as raw:
                if raw.read(2) == _GZIP_MAGIC:
                    raw.seek(0)
                    with gzip.open(raw) as unzipped:
                        assert isinstance(unzipped, gzip.GzipFile)
                        yield io.BufferedReader(unzipped)
                else:
                    raw.seek(0)
                    yield raw
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            line = self._num_lines + 1
            raise self.fault(line, f"the gzip file is damaged or truncated there: {error}") from None
        except OSError as error:
            raise WorkloadError(f"{self.path} cannot be read: {error.strerror or error}") from None
