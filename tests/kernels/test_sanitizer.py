"""compute-sanitizer finds nothing in any kernel, and finds what is planted:

    pytest -m gpu -n 0 tests/kernels/test_sanitizer.py

memcheck sees reads and writes outside of what was allocated, racecheck threads of a program that meet in shared memory
without a barrier between them. What programs do to one another in the GPU's memory neither sees. Run as a script, this
file launches what is planted.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pbench

EXIT_CODE = 86  # of neither pytest nor Python
ROOT = Path(pbench.__file__).parents[1]
# pytest-benchmark, where it is installed, warns of -n, and warnings are errors here.
EVERY_KERNEL = [
    *(sys.executable, "-P", "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-p", "no:benchmark"),
    str(Path(__file__).with_name("test_every_kernel.py")),
]
# racecheck is the slower tool, and the kernels of torch's that use shared memory are not ours. It does not follow the
# barriers that Triton puts around warp specialisation, and reports what _hopper_prefill_kernel's roles are handed in
# shared memory between two of them: names that begin with an h are left out.
OPTIONS = {"memcheck": [], "racecheck": ["--kernel-name", "regex=^_[a-gi-z0-9][a-z0-9_]*_kernel$"]}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not shutil.which("compute-sanitizer"), reason="compute-sanitizer is not installed"),
]


def run(*command, **variables):
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def sanitize(tool, *command):
    """Run a command under a tool; its exit code is EXIT_CODE if the tool found something.

    Every tensor is an allocation of its own: beyond the end of one that torch cut from a larger one lies another.
    """
    options = ["--tool", tool, "--error-exitcode", str(EXIT_CODE), "--report-api-errors", "no", *OPTIONS[tool]]
    return run("compute-sanitizer", *options, *command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def text(done):
    return done.stdout[-10000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def num_compiled():
    """Compile all variants first, side by side and without a tool; how many tests that took."""
    done = run(*EVERY_KERNEL, "-n", "8", "--dist", "load")
    assert done.returncode == 0, text(done)
    return int(re.search(r"(\d+) passed", done.stdout)[1])


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_nothing_is_found_in_any_kernel(tool, num_compiled):
    done = sanitize(tool, *EVERY_KERNEL, "-n", "0")
    assert done.returncode == 0, text(done)
    assert f"{num_compiled} passed" in done.stdout
    assert num_compiled > 30


@pytest.mark.parametrize(
    ("tool", "planted", "words"),
    [
        ("memcheck", "write", "Invalid __global__ write"),
        ("memcheck", "read", "Invalid __global__ read"),
        ("racecheck", "race", "hazard"),
    ],
)
def test_what_is_planted_is_found(tool, planted, words):
    done = sanitize(tool, sys.executable, "-P", __file__, planted)
    assert done.returncode == EXIT_CODE, text(done)
    assert words in done.stdout


def plant(fault):
    """Give one of our kernels a block that lies behind the pool; or let threads write to one place and read from it."""
    if fault == "race":
        numbers = torch.arange(256, dtype=torch.int32, device="cuda")
        race_kernel()[(1,)](numbers, num_warps=8)
    else:
        from pbench.kernels.copy_blocks import copy_blocks

        pool = torch.zeros(1, 4, 2, 8, 64, 128, device="cuda")
        copy_blocks(pool, torch.tensor([[0, 4] if fault == "write" else [4, 0]], device="cuda"))
    torch.cuda.synchronize()


def race_kernel():
    import triton
    from triton import language as tl

    @triton.jit
    def _race_kernel(numbers_ptr):
        place = numbers_ptr + tl.arange(0, 256)
        met = tl.inline_asm_elementwise(
            "{ .shared .align 4 .b32 met; st.volatile.shared.b32 [met], $1; ld.volatile.shared.b32 $0, [met]; }",
            "=r,r",
            [tl.load(place)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
        tl.store(place, met)

    return _race_kernel


if __name__ == "__main__":
    plant(sys.argv[1])
