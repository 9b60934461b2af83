import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SERVER = Path(__file__).parent / "completion_server.py"

StartServer = Callable[..., str]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start a server process on the loopback; returns the base of its API."""
    started: list[subprocess.Popen[str]] = []

    def start(*models: str, delay_s: float = 0.0) -> str:
        command = [sys.executable, str(SERVER), *models, "--delay", str(delay_s)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return f"http://127.0.0.1:{int(process.stdout.readline())}/v1"

    yield start
    for process in started:
        process.kill()
        process.communicate()
