import pytest
import torch
from torch.nn.functional import silu

from pbench.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference, silu_and_mul_triton


def random_gate_up(num_tokens, size, device, dtype):
    generator = torch.Generator().manual_seed(size)
    return torch.randn(num_tokens, 2 * size, generator=generator).to(device, dtype)


@pytest.mark.parametrize(("num_tokens", "size"), [(1, 1), (3, 100), (2, 1024), (5, 1025), (2, 14336), (0, 64)])
def test_kernel_is_the_formula(device, dtype_and_tolerance, num_tokens, size):
    dtype, tolerance = dtype_and_tolerance
    gate_up = random_gate_up(num_tokens, size, device, dtype)
    gate, up = gate_up.double().chunk(2, 1)
    out = silu_and_mul_triton(gate_up)
    assert out.dtype is dtype
    torch.testing.assert_close(out.double(), gate / (1 + (-gate).exp()) * up, rtol=tolerance, atol=tolerance)


# exp(-gate) is meant to saturate at infinity, which numpy tells under the interpreter.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_large_gates_do_not_become_nan(device):
    gates = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], device=device)
    out = silu_and_mul_triton(torch.stack((gates, torch.ones_like(gates)), 1))
    torch.testing.assert_close(out[:, 0], gates.clamp(min=0), rtol=1e-6, atol=1e-6)


def test_rows_of_a_wider_tensor_are_read_in_place(device):
    wide = random_gate_up(4, 48, device, torch.float32)
    view = wide[:, 16:80]
    torch.testing.assert_close(silu_and_mul_triton(view), silu_and_mul_reference(view), rtol=2e-6, atol=2e-6)


def test_launcher_on_cpu_equals_a_model_s_activation_exactly_in_float32():
    gate_up = random_gate_up(7, 96, "cpu", torch.float32)
    gate, up = gate_up.chunk(2, 1)
    assert torch.equal(silu_and_mul(gate_up), silu(gate) * up)


@pytest.mark.gpu
def test_launcher_is_right_at_the_sizes_of_a_model():
    gate_up = random_gate_up(3000, 14336, "cuda", torch.bfloat16)
    torch.testing.assert_close(silu_and_mul(gate_up), silu_and_mul_reference(gate_up), rtol=8e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("gate_up", "message"),
    [
        (torch.zeros(2, 3), "gate_up has 3 columns; expected an even number"),
        (torch.zeros(2, 3, 4), "gate_up has shape"),
        (torch.zeros(2, 4, dtype=torch.float64), "gate_up is float64"),
        (torch.zeros(4, 2).T, "gate_up has strides"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(gate_up, message):
    with pytest.raises(ValueError, match=message):
        silu_and_mul(gate_up)
