import pytest
import torch

from pbench.kernels.few_rows_matmul import suits_hopper
from pbench.kernels.most_likely import (
    TILE_SIZE,
    can_stay_in_registers,
    most_likely,
    most_likely_next,
    most_likely_triton,
)

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


def integers(num_rows, depth, vocab_size, device, dtype, seed=0):
    """Hidden states and a head whose sums are exact in every order; many are equal, once rounded."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (num_rows, depth), (vocab_size, depth)
    return [torch.randint(-2, 3, shape, generator=generator).to(device, dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_next_tokens_are_those_of_rounded_logits(dtype):
    hidden, head = integers(5, 200, 300, "cpu", dtype)
    out = torch.empty(5, dtype=torch.int64)
    most_likely_next(hidden, head, out)
    assert out.tolist() == (hidden.double() @ head.double().T).to(dtype).argmax(dim=-1).tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("depth", "vocab_size"),
    [(1024, 151936), (64, 384), (520, 50257)],  # the last tile of tokens is cut short in the last two
)
def test_next_tokens_on_hopper(dtype, depth, vocab_size):
    """Also where the head's tiles are read while the kernel before still writes hidden states."""
    for num_rows in (1, 16, 17, 33, 64, 65, 96, 100, 128, 129, 144, 145, 160, 161, 192, 193, 256):
        hidden, head = integers(num_rows, depth, vocab_size, "cuda", dtype, seed=num_rows)
        if not suits_hopper(hidden):
            pytest.skip("this GPU is no Hopper")
        from pbench.kernels.hopper_most_likely import hopper_most_likely

        hidden[num_rows // 2] = 0  # all logits are equal
        out = torch.full((num_rows + 1,), -1, dtype=torch.int64, device="cuda")
        hopper_most_likely(hidden, head, out[1:])
        expected = (hidden.float() @ head.float().T).to(dtype).argmax(dim=-1)
        assert out.tolist() == [-1, *expected.tolist()]


@pytest.mark.gpu
def test_next_tokens_are_likely_ones_at_the_size_of_a_model():
    """Sums in another order are rounded otherwise now and then."""
    head = torch.randn(151936, 1024, device="cuda", dtype=torch.bfloat16) / 32
    for num_rows in (1, 48, 141, 256):
        hidden = torch.randn(num_rows, 1024, device="cuda", dtype=torch.bfloat16)
        out = torch.empty(num_rows, dtype=torch.int64, device="cuda")
        most_likely_next(hidden, head, out)
        logits = hidden.float() @ head.float().T
        chosen = logits.gather(1, out[:, None])
        assert torch.all(chosen >= logits.amax(1, keepdim=True) * (1 - 2**-7))


def test_logits_stay_in_registers_where_that_is_faster():
    assert can_stay_in_registers(1, 151936, 1024, num_sms=132)
    assert not can_stay_in_registers(0, 151936, 1024, num_sms=132)
    assert can_stay_in_registers(256, 151936, 1024, num_sms=132)
    assert not can_stay_in_registers(257, 151936, 1024, num_sms=132)
    assert can_stay_in_registers(128, 128256, 4096, num_sms=132)
    assert not can_stay_in_registers(129, 128256, 4096, num_sms=132)
    assert not can_stay_in_registers(8, 151936, 1028, num_sms=132)
    assert not can_stay_in_registers(8, 32000, 1024, num_sms=132)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.zeros(5)}, "hidden has shape"),
        ({"hidden": torch.zeros(2, 4)}, "head has shape"),
        ({"hidden": torch.zeros(2, 5, dtype=torch.int32)}, "hidden is int32"),
        ({"head": torch.zeros(7, 5, dtype=torch.bfloat16)}, "head is bfloat16"),
        ({"head": torch.zeros(5, 7).T}, "head of shape"),
        ({"out": torch.zeros(3, dtype=torch.int64)}, "out has shape"),
    ],
)
def test_the_argument_of_next_tokens_that_does_not_fit_is_named(changes, message):
    arguments = {"hidden": torch.zeros(2, 5), "head": torch.zeros(7, 5), "out": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        most_likely_next(**arguments | changes)
