"""What all tests share: Triton's interpreter where there is no GPU, and the mark of the tests that need one."""

import os

# Before torch is imported. Tensors are small here, and threads that wait for one another on busy cores take minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

HAS_GPU = torch.cuda.is_available()

# Triton reads this when it is imported, which no module does before this file is loaded. Kernels are interpreted
# only where a test calls them by name: launchers run their torch references on CPU tensors all the same.
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_GPU:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))
