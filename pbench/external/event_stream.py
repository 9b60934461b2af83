"""Server-sent events, as they come off a connection in pieces (WHATWG HTML, "Server-sent events")."""


class EventStream:
    """Puts the data of events together.

    Lines end with LF or CRLF; a single CR, which the standard allows too and no server sends, ends none. Fields other
    than ``data`` and comments are left out.
    """

    def __init__(self) -> None:
        self._rest = b""  # of a line that has not ended
        self._data: list[bytes] = []  # lines of the event that has not ended

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that ``piece`` completes, in order."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        events: list[bytes] = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events
