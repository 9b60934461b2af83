import pytest
import torch

from pbench.kernels.most_likely import TILE_SIZE, most_likely, most_likely_triton

VOCAB_SIZES = [1, 97, TILE_SIZE, TILE_SIZE + 1, 2 * TILE_SIZE + 777]


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_kernel_finds_the_largest(device, dtype_and_tolerance, vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn((7, vocab_size), generator=generator).to(device, dtype_and_tolerance[0])
    out = torch.full((7,), -1, device=device)
    most_likely_triton(logits, out)
    assert out.tolist() == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_of_equals_it_takes_the_first(device, vocab_size):
    logits = torch.full((4, vocab_size), -1.0, device=device)
    logits[1:, vocab_size // 2 :] = 3.0  # in two tiles, where there are two
    logits[2, -1] = 5.0
    logits[3] = float("-inf")
    out = torch.full((4,), -1, device=device)
    most_likely_triton(logits, out)
    assert out.tolist() == [0, vocab_size // 2, vocab_size - 1, 0]


def test_the_launcher_on_the_cpu_does_the_same():
    logits = torch.tensor([[0.0, 2.0, 2.0], [-1.0, -3.0, -1.0]])
    out = torch.empty(2, dtype=torch.int64)
    most_likely(logits, out)
    assert out.tolist() == [1, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 100, 256])
def test_launcher_is_right_at_the_size_of_a_model(num_rows):
    logits = torch.randn(num_rows, 151936, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(num_rows + 1, dtype=torch.int64, device="cuda")[1:]
    most_likely(logits, out)
    assert out.tolist() == logits.argmax(dim=-1).tolist()


def test_no_rows_choose_nothing(device):
    most_likely_triton(torch.zeros((0, 97), device=device), torch.zeros(0, dtype=torch.int64, device=device))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(5)}, "logits has shape"),
        ({"logits": torch.zeros(2, 5, dtype=torch.int32)}, "logits is int32"),
        ({"logits": torch.zeros(5, 2).T}, "logits of shape"),
        ({"out": torch.zeros(3, dtype=torch.int64)}, "out has shape"),
        ({"out": torch.zeros(2)}, "out is float32"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(changes, message):
    arguments = {"logits": torch.zeros(2, 5), "out": torch.zeros(2, dtype=torch.int64)} | changes
    with pytest.raises(ValueError, match=message):
        most_likely(**arguments)
