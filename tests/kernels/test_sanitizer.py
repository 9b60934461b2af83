"""compute-sanitizer finds nothing in any kernel, and finds what is planted:

    pytest -m gpu -n 0 tests/kernels/test_sanitizer.py

memcheck sees reads and writes outside of what was allocated, racecheck threads of a program that meet in shared memory
without a barrier between them. What programs do to one another in the GPU's memory neither sees. Run as a script, this
file launches what is planted.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
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
# racecheck is the slower tool, and the kernels of torch's that use shared memory are not ours. It does not follow a
# barrier that warps reach at different places of the code, as those are that Triton puts around warp specialisation,
# and reports what roles of _hopper_prefill_kernel and _hopper_decode_kernel are handed in shared memory between two of
# them: those are left out, and looked at in a test of their own, hazard by hazard.
OPTIONS = {
    "memcheck": [],
    "racecheck": ["--kernel-name", "regex=^_([a-gi-z]|hopper_few|hopper_most|hopper_project)[a-z0-9_]*_kernel$"],
    "hazards": [
        *("--kernel-name", "regex=^_hopper_(decode|prefill)_kernel$", "--racecheck-report", "hazard"),
        *("--show-backtrace", "no", "--print-limit", "100000"),
    ],
}
RESERVED_BYTES = 1024  # of shared memory: its beginning, which CUDA keeps for itself

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
    name = "racecheck" if tool == "hazards" else tool
    options = ["--tool", name, "--error-exitcode", str(EXIT_CODE), "--report-api-errors", "no", *OPTIONS[tool]]
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


def numel_of_tiles(kernel, head_dim):
    """Numbers of Q, K and V, and of a decode's weights, that a program has in shared memory."""
    from pbench.kernels import hopper_decode, hopper_prefill

    if kernel == "prefill":
        num_queries = hopper_prefill.NUM_QUERIES_HELD.value * hopper_prefill.TILE_ROWS.value
        return (num_queries + 2 * hopper_prefill.HELD_TOKENS.value) * head_dim
    columns, tiling = hopper_decode.MIN_COLUMNS.value, hopper_decode.TILING_OF_FEW
    return columns * (head_dim + tiling.tile_tokens) + 2 * tiling.tiles_in_flight * tiling.tile_tokens * 128


def tile_hazards(done, kernel, head_dim):
    """Addresses of the hazards printed in the tiles of Q, K and V, and whether all were printed.

    Tiles lie in front of what roles are handed. What the tensor memory accelerator writes and the matrix units read
    racecheck does not see.
    """
    end = RESERVED_BYTES + numel_of_tiles(kernel, head_dim) * torch.bfloat16.itemsize
    hazards = re.findall(r"hazard detected at __shared__ (0x[0-9a-f]+)", done.stdout)
    shown = re.search(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, 0 warnings\)", done.stdout)
    assert shown, text(done)
    are_all = len(hazards) == int(shown[1]) == int(shown[2])
    return [address for address in hazards if int(address, 16) < end], are_all


@pytest.mark.parametrize(
    ("kernel", "head_dim", "num_tests"),
    [("prefill", 64, 1), ("prefill", 128, 2), ("decode", 64, 2), ("decode", 128, 4)],
)
def test_warps_of_hoppers_attention_do_not_meet_in_its_tiles(num_compiled, kernel, head_dim, num_tests):
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("this GPU is no Hopper")
    done = sanitize("hazards", *EVERY_KERNEL, "-n", "0", "-k", f"{kernel}_on_hopper and -{head_dim}-")
    assert f"{num_tests} passed" in done.stdout, text(done)
    assert tile_hazards(done, kernel, head_dim) == ([], True)


def test_warps_that_meet_in_tiles_are_found():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("this GPU is no Hopper")
    done = sanitize("hazards", sys.executable, "-P", __file__, "tiles")
    assert done.returncode == EXIT_CODE, text(done)
    assert tile_hazards(done, "prefill", 128)[0]


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
    """Give a kernel of ours a block behind the pool; let threads meet in one place, or groups of warps in a tile."""
    if fault == "tiles":
        attend_with_a_race()
    elif fault == "race":
        numbers = torch.arange(256, dtype=torch.int32, device="cuda")
        race_kernel()[(1,)](numbers, num_warps=8)
    else:
        from pbench.kernels.copy_blocks import copy_blocks

        pool = torch.zeros(1, 4, 2, 8, 64, 128, device="cuda")
        copy_blocks(pool, torch.tensor([[0, 4] if fault == "write" else [4, 0]], device="cuda"))
    torch.cuda.synchronize()


def attend_with_a_race():
    """Both groups of warps zero what lies behind the sequence's end, instead of one while the other waits."""
    path = ROOT / "kernels" / "hopper_prefill.py"
    wait = "mbarrier.wait(zeroed.index(place), (zero_parities >> place) & 1)"
    zero = "_zero_unseen(values, place, start, first, context_len, HEAD_DIM, TILE_TOKENS)"
    text = path.read_text()
    assert wait in text
    with tempfile.TemporaryDirectory() as folder:
        planted = Path(folder, "planted.py")
        planted.write_text(text.replace(wait, zero))
        spec = importlib.util.spec_from_file_location("planted", planted)
        sys.modules["planted"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        # Many tiles, for warps that are far apart when they get to one do not meet there.
        query, kv = (torch.randn(*shape, device="cuda").bfloat16() for shape in ((800, 8, 128), (80, 2, 2, 16, 128)))
        table = torch.arange(80, dtype=torch.int32, device="cuda").view(8, 10)
        starts = torch.arange(0, 801, 100, dtype=torch.int32, device="cuda")
        lens = torch.full((8,), 150, dtype=torch.int32, device="cuda")
        module.hopper_prefill_attention(query, kv, table, starts, lens, torch.empty_like(query), scale=0.1)
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
