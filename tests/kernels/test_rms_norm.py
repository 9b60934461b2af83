import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pbench.kernels.rms_norm import (
    add_parts_rms_norm,
    add_parts_rms_norm_reference,
    add_parts_rms_norm_triton,
    add_rms_norm,
    add_rms_norm_reference,
    add_rms_norm_triton,
    rms_norm,
    rms_norm_reference,
    rms_norm_triton,
)

EPS = 1e-5
SHAPES = [(1, 16), (7, 64), (3, 100), (2, 4096), (5, 3, 128), (2, 3, 2, 32), (16,), (0, 64)]


def random_rows(shape, device, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 3).to(device, dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_the_formula(device, dtype_and_tolerance, shape):
    dtype, tolerance = dtype_and_tolerance
    x, weight = random_rows(shape, device, dtype), random_rows(shape[-1:], device, dtype, 1)
    expected = rms_norm_reference(x.double(), weight.double(), EPS)
    out = rms_norm_triton(x, weight, EPS)
    assert out.dtype is dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_fused_kernel_is_the_formula_of_the_rounded_sum(device, dtype_and_tolerance, shape):
    dtype, tolerance = dtype_and_tolerance
    x, residual = random_rows(shape, device, dtype), random_rows(shape, device, dtype, 2)
    weight = random_rows(shape[-1:], device, dtype, 1)
    normed, new_residual = add_rms_norm_triton(x, residual, weight, EPS)
    assert normed.dtype is new_residual.dtype is dtype
    exact_sum = x.double() + residual.double()
    torch.testing.assert_close(new_residual.double(), exact_sum, rtol=tolerance, atol=tolerance)
    expected = rms_norm_reference(new_residual.double(), weight.double(), EPS)
    torch.testing.assert_close(normed.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_parts", [1, 3, 8])
@pytest.mark.parametrize("shape", [(3, 100), (2, 4096), (0, 64)])
def test_kernel_of_parts_is_the_formula_of_their_rounded_sum(device, dtype_and_tolerance, shape, num_parts):
    dtype, tolerance = dtype_and_tolerance
    parts, residual = random_rows((num_parts, *shape), device, torch.float32), random_rows(shape, device, dtype, 2)
    weight = random_rows(shape[-1:], device, dtype, 1)
    normed, new_residual = add_parts_rms_norm_triton(parts, residual, weight, EPS)
    assert normed.dtype is new_residual.dtype is dtype
    exact = parts.double().sum(0), parts.double().sum(0) + residual.double()
    errors = (new_residual.double() - exact[1]).abs()
    assert (errors <= tolerance * (1 + exact[0].abs() + exact[1].abs())).all()  # both sums are rounded
    expected = rms_norm_reference(new_residual.double(), weight.double(), EPS)
    torch.testing.assert_close(normed.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 64, 177, 256])
@pytest.mark.parametrize("num_upcoming", [None, 1, 3 * 2**20 + 5])
def test_parts_are_summed_and_rounded_as_one_product_would_be(num_rows, num_upcoming):
    """In a row of kernels that start early, each of which reads what the one before it wrote."""
    upcoming = num_upcoming and torch.empty(num_upcoming, dtype=torch.bfloat16, device="cuda")
    residual, weight = (random_rows(shape, "cuda", torch.bfloat16, 2) for shape in ((num_rows, 4096), (4096,)))
    parts = random_rows((4, num_rows, 4096), "cuda", torch.float32)
    expected = residual
    for _ in range(5):
        _, residual = add_parts_rms_norm(parts, residual, weight, EPS, upcoming)
        _, expected = add_parts_rms_norm_reference(parts, expected, weight, EPS)
    # Parts are added in another order, so a sum may round to a neighbour, five times.
    torch.testing.assert_close(residual, expected, rtol=5 * 2**-7, atol=5e-2)


def test_rows_of_a_wider_tensor_are_read_in_place(device):
    packed = random_rows((6, 5, 32), device, torch.float32)
    weight = random_rows((32,), device, torch.float32, 1)
    for view in (packed[:, 1:3], packed[:, 4], packed[::2, :2]):
        out = rms_norm_triton(view, weight, EPS)
        assert out.is_contiguous()
        torch.testing.assert_close(out, rms_norm_reference(view, weight, EPS), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_launcher_on_cpu_equals_transformers_exactly(dtype):
    norm = LlamaRMSNorm(96, eps=EPS)
    norm.weight.data = random_rows((96,), "cpu", dtype, 1)
    x, residual = random_rows((9, 96), "cpu", dtype), random_rows((9, 96), "cpu", dtype, 2)
    with torch.no_grad():
        assert torch.equal(rms_norm(x, norm.weight.data, EPS), norm(x))
        normed, new_residual = add_rms_norm(x, residual, norm.weight.data, EPS)
        assert torch.equal(new_residual, x + residual)
        assert torch.equal(normed, norm(x + residual))


def test_fused_reference_leaves_its_arguments_alone():
    x, residual, weight = torch.ones(2, 16), torch.full((2, 16), 2.0), torch.ones(16)
    _, new_residual = add_rms_norm_reference(x, residual, weight, EPS)
    assert torch.equal(x, torch.ones(2, 16))
    assert torch.equal(residual, torch.full((2, 16), 2.0))
    assert torch.equal(new_residual, torch.full((2, 16), 3.0))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8192, 4096), (3, 32768), (2048, 40, 128)])
def test_launcher_is_right_at_the_sizes_of_a_model(shape):
    x, residual = (random_rows(shape, "cuda", torch.bfloat16, seed) for seed in (0, 2))
    weight = random_rows(shape[-1:], "cuda", torch.bfloat16, 1)
    for got, expected in (
        (rms_norm(x, weight, EPS), rms_norm_reference(x, weight, EPS)),
        *zip(add_rms_norm(x, residual, weight, EPS), add_rms_norm_reference(x, residual, weight, EPS), strict=True),
    ):
        # Two roundings, each of which another order of the sum may move by a step of 2^-7.
        torch.testing.assert_close(got, expected, rtol=2**-6, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.zeros(2, 16), torch.zeros(8), "weight has shape"),
        (torch.zeros(2, 16), torch.zeros(16, dtype=torch.float16), "weight is float16; expected float32"),
        (torch.zeros(16, 2).T, torch.zeros(16), "x has strides"),
        (torch.zeros(2, 16, dtype=torch.int32), torch.zeros(16), "x is int32"),
        (torch.zeros(1, 40000), torch.zeros(40000), "from 1 to 32768"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(x, weight, message):
    with pytest.raises(ValueError, match=message):
        rms_norm(x, weight, EPS)


@pytest.mark.parametrize(
    ("residual", "message"),
    [
        (torch.zeros(3, 16), "residual has shape"),
        (torch.zeros(2, 16, dtype=torch.float16), "residual is float16; expected float32"),
        (torch.zeros(16, 2).T, "residual of shape"),
    ],
)
def test_fused_launcher_names_the_residual_that_does_not_fit(residual, message):
    with pytest.raises(ValueError, match=message):
        add_rms_norm(torch.zeros(2, 16), residual, torch.zeros(16), EPS)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (torch.zeros(2, 16), "parts has shape"),
        (torch.zeros(4, 3, 16), "parts has shape"),
        (torch.zeros(4, 2, 16, dtype=torch.float16), "parts is float16; expected float32"),
        (torch.zeros(2, 4, 16).transpose(0, 1), "parts of shape"),
    ],
)
def test_launcher_of_parts_names_what_does_not_fit(parts, message):
    with pytest.raises(ValueError, match=message):
        add_parts_rms_norm(parts, torch.zeros(2, 16), torch.zeros(16), EPS)
