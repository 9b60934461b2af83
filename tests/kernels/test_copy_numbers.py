import pytest
import torch

from pbench.kernels.copy_numbers import TILE_SIZE, copy_numbers, copy_numbers_triton


def numbers(size):
    return torch.arange(1 << 40, (1 << 40) + size)


@pytest.mark.parametrize("size", [0, 1, TILE_SIZE, 3 * TILE_SIZE + 5])
def test_kernel_copies_all_and_nothing_else(size):
    destination = torch.full((size + 3,), -1)
    copy_numbers_triton(destination[:size], numbers(size))
    assert destination.tolist() == [*numbers(size).tolist(), -1, -1, -1]


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, TILE_SIZE, 3 * TILE_SIZE + 5])
def test_there_and_back(size):
    host, device = torch.zeros(size + 3, dtype=torch.int64, pin_memory=True), torch.full((size + 3,), -1).cuda()
    for first in range(2):
        host[:size] = numbers(size) + first
        copy_numbers(device[:size], host[:size])
        assert device.tolist() == [*host[:size].tolist(), -1, -1, -1]
        copy_numbers(host[1 : size + 1], device[:size])
        torch.cuda.synchronize()
        assert host.tolist() == [(numbers(size) + first)[0], *(numbers(size) + first).tolist(), 0, 0]


@pytest.mark.gpu
def test_memory_that_is_not_pinned_is_refused():
    device = torch.zeros(4, dtype=torch.int64, device="cuda")
    with pytest.raises(ValueError, match="source is in host memory that is not pinned"):
        copy_numbers(device, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"destination": torch.zeros(2, 2, dtype=torch.int64)}, r"destination has shape \(2, 2\); expected \(n,\)"),
        ({"source": torch.zeros(5, dtype=torch.int64)}, r"source has shape \(5,\); expected \(4,\)"),
        ({"source": torch.zeros(4)}, "source is float32; expected int64"),
        ({"source": torch.zeros(8, dtype=torch.int64)[::2]}, r"source of shape \(4,\) has strides \(2,\)"),
    ],
)
def test_bad_arguments_are_refused(given, message):
    arguments = {name: torch.zeros(4, dtype=torch.int64) for name in ("destination", "source")} | given
    with pytest.raises(ValueError, match=message):
        copy_numbers(**arguments)
