"""What the tests of the kernels share: where they run, and pools whose every unused slot is poison."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import pbench
from pbench.kernels.compiler import HAS_TRITON, is_interpreted


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and not HAS_TRITON:
        pytest.skip("Triton is not installed")
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("Triton compiles for the GPU in this process; its interpreter is off")
    assert request.param == "cuda" or is_interpreted(), "Triton was imported before TRITON_INTERPRET was set"
    return str(request.param)


@pytest.fixture(
    params=[
        pytest.param((torch.float32, 2e-6), id="float32"),
        pytest.param((torch.bfloat16, 1.6e-2), id="bfloat16"),  # the interpreter truncates where a GPU rounds
        pytest.param((torch.float16, 2e-3), id="float16"),
    ]
)
def dtype_and_tolerance(request: pytest.FixtureRequest) -> tuple[torch.dtype, float]:
    """A dtype and the error it allows, relative and absolute, in values of order one."""
    return request.param


@pytest.fixture(
    params=[
        pytest.param((torch.float32, 1e-5), id="float32"),
        # Triton's interpreter multiplies bfloat16 matrices as if they were integers: only on the GPU.
        pytest.param((torch.bfloat16, 2e-2), id="bfloat16", marks=pytest.mark.gpu),
        pytest.param((torch.float16, 4e-3), id="float16"),
    ]
)
def attention_dtype(request: pytest.FixtureRequest, device: str) -> tuple[torch.dtype, float]:
    """As ``dtype_and_tolerance``, for kernels that multiply matrices."""
    if device == "cpu" and request.param[0] is torch.bfloat16:
        pytest.skip("Triton's interpreter does not multiply bfloat16 matrices")
    return request.param


@pytest.fixture(scope="session")
def run_with_compiler(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Runs a file of this folder by itself, with Triton's compiler, and returns what it prints.

    The compiler and the interpreter exclude each other in one process.
    """
    if not HAS_TRITON:
        pytest.skip("Triton is not installed")

    def run(file: str) -> str:
        path = (str(Path(pbench.__file__).parents[1]), str(Path(__file__).parent))
        environment = os.environ | {
            "TRITON_INTERPRET": "0",
            "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
            "PYTHONPATH": os.pathsep.join(path),
        }
        done = subprocess.run(
            [sys.executable, "-P", file], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@dataclass(frozen=True, slots=True)
class Cache:
    """One layer of a pool, and where the sequences stand in it."""

    kv: torch.Tensor
    table: torch.Tensor
    context_lens: torch.Tensor
    is_contiguous: bool

    def double(self) -> dict[str, torch.Tensor]:
        """Arguments of a reference in float64, without poison: what it must not read cannot spoil it."""
        return {
            "kv": self.kv.double().nan_to_num(),
            "table": self.table,
            "context_lens": self.context_lens,
        }

    def without(self, first_tokens: Sequence[int]) -> "Cache":
        """The same with poison in every slot of a token before ``first_tokens``, and in table entries of such alone."""
        kv, table, block_size = self.kv.clone(), self.table.clone(), self.kv.shape[3]
        for i, first in enumerate(first_tokens):
            if self.is_contiguous:
                base = int(table[i, 0])
                kv[0, :, :, base : base + first] = float("nan")
                continue
            for j in range(-(-first // block_size)):
                kv[table[i, j], :, :, : first - j * block_size] = float("nan")
            table[i, : first // block_size] = 2**30
        return replace(self, kv=kv, table=table)


def _build_cache(
    context_lens: Sequence[int],
    *,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    is_contiguous: bool,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> Cache:
    """A pool that holds sequences of these lengths in random order; NaN in every slot that none of them uses.

    Entries of a block table that must not be read are far out of the pool.
    """
    generator = torch.Generator().manual_seed(seed)
    num_blocks = [-(-length // block_size) for length in context_lens]
    width = max(num_blocks, default=0) + 1
    pool_blocks = sum(num_blocks) + 3
    order = torch.randperm(pool_blocks, generator=generator).tolist()
    kv = torch.full((pool_blocks, 2, num_kv_heads, block_size, head_dim), float("nan"))
    table = torch.full((len(context_lens), width), 2**30, dtype=torch.int32)
    for i, length in enumerate(context_lens):
        for j in range(num_blocks[i]):
            block_id = order.pop()
            used = min(block_size, length - j * block_size)
            kv[block_id, :, :, :used] = torch.randn(2, num_kv_heads, used, head_dim, generator=generator)
            table[i, j] = block_id
    if is_contiguous:
        kv, table = _as_extents(kv, table, context_lens)
    return Cache(
        kv.to(device, dtype),
        table.to(device),
        torch.tensor(context_lens, dtype=torch.int32, device=device),
        is_contiguous,
    )


def _as_extents(
    kv: torch.Tensor, table: torch.Tensor, context_lens: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same sequences, each in one run of slots, with a poisoned slot before and after each."""
    num_slots = sum(context_lens) + len(context_lens) + 1
    pool = torch.full((1, 2, kv.shape[2], num_slots, kv.shape[4]), float("nan"))
    bases = torch.full((len(context_lens), 1), 2**30, dtype=torch.int32)
    base = 1
    for i, length in enumerate(context_lens):
        if length:
            bases[i] = base
        for first in range(0, length, kv.shape[3]):
            used = min(kv.shape[3], length - first)
            pool[0, :, :, base + first : base + first + used] = kv[table[i, first // kv.shape[3]], :, :, :used]
        base += length + 1
    return pool, bases


@pytest.fixture(scope="session")
def build_cache() -> Callable[..., Cache]:
    return _build_cache
