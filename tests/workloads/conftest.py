"""What the tests of workloads share: small files in every format, and recorded traces where they are found."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A few rows of our own in each format; which format a file is, is to be told by these bytes alone.
SMALL_FILES = {
    "azure": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
        "2023-11-16 18:16:00,879,55\n"
    ),
    "mooncake": (
        '{"timestamp": 0, "input_length": 1100, "output_length": 50, "hash_ids": [0, 1, 2]}\n'
        '{"timestamp": 3000, "input_length": 1024, "output_length": 7, "hash_ids": [0, 1]}\n'
        '{"timestamp": 3000, "input_length": 513, "output_length": 9, "hash_ids": [0, 5]}\n'
    ),
    "bailian": (
        '{"chat_id":1,"parent_chat_id":-1,"timestamp":0.5,"input_length":40,"output_length":12,"type":"text","turn":1,'
        '"hash_ids":[7,8,9]}\n'
        '{"chat_id":2,"parent_chat_id":1,"timestamp":61.114,"input_length":35,"output_length":13,"type":"text",'
        '"turn":2,"hash_ids":[7,8]}\n'
    ),
    "burstgpt": (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45,ChatGPT,1087,230,1317,Conversation log\n"
        "118,GPT-4,417,0,417,API log\n"
    ),
    "sharegpt": (
        '[{"id": "a", "conversations": [{"from": "human", "value": "How many eggs are in a dozen?"},'
        ' {"from": "gpt", "value": "Twelve."}, {"from": "human", "value": "And in two?"},'
        ' {"from": "gpt", "value": "Twenty-four eggs."}]},\n'
        ' {"id": "b", "conversations": [{"from": "gpt", "value": "Nobody asked."}]},\n'
        ' {"id": "c", "conversations": [{"from": "human", "value": "How many eggs are in a dozen?"},'
        ' {"from": "gpt", "value": "12, unless a baker counts."}]}]\n'
    ),
    "pbench": (
        '{"pbench_workload": 1, "hash_block_size": 4, "source": "made up"}\n'
        '{"arrival_s": 0.0, "input_length": 10, "output_length": 3, "prefix_hashes": [1, 2]}\n'
        '{"arrival_s": 0.5, "input_length": 8, "output_length": 4, "prefix_hashes": [1, 3], "n": 2}\n'
        '{"arrival_s": 0.5, "output_length": 2, "prompt_token_ids": [5, 6, 7]}\n'
        '{"arrival_s": 2, "input_length": 9, "output_length": 2, "segments": [[1, 4], [9, 5]]}\n'
    ),
}

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def small_files() -> dict[str, str]:
    return SMALL_FILES


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes text or bytes into a file whose name says nothing of its format; gzipped on request."""

    def write_file(content: str | bytes, name: str = "requests.dat", *, is_zipped: bool = False) -> Path:
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.write_bytes(gzip.compress(data, mtime=0) if is_zipped else data)
        return path

    return write_file


def trace(name: str) -> Path:
    """A recorded trace; skips the test where it is not found."""
    folders = [Path(os.environ["PBENCH_TRACES"])] if "PBENCH_TRACES" in os.environ else []
    for folder in (*folders, ROOT.parent / "shared" / "traces"):
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"{name} is neither in PBENCH_TRACES nor in ../shared/traces")


@pytest.fixture
def azure_trace() -> Path:
    return trace("AzureLLMInferenceTrace_conv.csv")


@pytest.fixture
def mooncake_trace() -> Path:
    return trace("mooncake_conversation_trace.jsonl")
