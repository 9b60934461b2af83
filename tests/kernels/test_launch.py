import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pbench
from pbench.kernels import launch

WITHOUT_TRITON = """
import importlib, pathlib, sys
sys.modules["triton"] = None  # import triton fails
import torch
from pbench.kernels.compiler import HAS_TRITON
assert not HAS_TRITON
names = sorted(path.stem for path in pathlib.Path(sys.argv[1]).glob("*.py"))
names = [name for name in names if not name.startswith("hopper_")]  # loaded where they run
modules = {name: importlib.import_module(f"pbench.kernels.{name}") for name in names}
print(modules["silu_and_mul"].silu_and_mul(torch.ones(1, 2)).item())
"""


def test_all_files_load_and_references_run_where_triton_is_not_installed():
    root = Path(pbench.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_TRITON, str(root / "pbench" / "kernels")],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(1 / (1 + 2.718281828**-1))


def test_cpu_tensors_go_to_the_references_even_where_triton_interprets():
    assert not launch.runs_on_triton(torch.zeros(1))


@pytest.mark.gpu
def test_gpu_tensors_go_to_triton_and_limits_are_the_device_s():
    tensor = torch.zeros(1, device="cuda")
    assert launch.runs_on_triton(tensor)
    limits = launch.device_limits(tensor)
    assert limits.num_sms == torch.cuda.get_device_properties(0).multi_processor_count
    assert limits.shared_memory_bytes >= 48 * 1024


def test_powers_and_quotients_round_up():
    for number in range(1, 300):
        power = launch.next_power_of_2(number)
        assert number <= power < 2 * number
        assert power & (power - 1) == 0
        for divisor in (1, 7, 64):
            quotient = launch.ceil_div(number, divisor)
            assert (quotient - 1) * divisor < number <= quotient * divisor
    assert launch.ceil_div(0, 5) == 0
