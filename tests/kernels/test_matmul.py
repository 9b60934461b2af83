import pytest
import torch
from torch.nn.functional import linear

from pbench.kernels.matmul import TILING_16_BIT, matmul, matmul_reference, matmul_triton

# Rows and columns on both sides of a tile's edge, and groups of row tiles that are not full.
SHAPES = [(1, 1, 1), (3, 48, 97), (64, 64, 64), (65, 80, 130), (33, 160, 64), (1100, 16, 70)]


def random_layer(num_rows, depth, num_columns, device, dtype):
    generator = torch.Generator().manual_seed(num_rows + depth)
    x, weight, bias = (
        torch.randn(shape, generator=generator) for shape in ((num_rows, depth), (num_columns, depth), (num_columns,))
    )
    return x.to(device, dtype), (weight / depth**0.5).to(device, dtype), bias.to(device, dtype)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_the_formula(device, attention_dtype, shape, has_bias):
    dtype, tolerance = attention_dtype
    x, weight, bias = random_layer(*shape, device, dtype)
    out = matmul_triton(x, weight, bias if has_bias else None)
    assert out.dtype is dtype
    expected = x.double() @ weight.double().T + (bias.double() if has_bias else 0)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_reference_is_the_formula(dtype, has_bias):
    x, weight, bias = random_layer(7, 48, 97, "cpu", dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    out = matmul_reference(x, weight, bias if has_bias else None)
    expected = x.double() @ weight.double().T + (bias.double() if has_bias else 0)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def rows_that_differ(multiply, x):
    """Rows whose bits are others alone, among fewer rows, or at another place, than among all."""
    whole = multiply(x)
    parts = [(first, min(first + size, len(x))) for size in (1, 2, 3, 7, 17, 65) for first in range(0, len(x), 5)]
    return {part for part in parts if not torch.equal(multiply(x[slice(*part)].clone()), whole[slice(*part)])}


@pytest.mark.parametrize(("depth", "num_columns"), [(48, 160), (80, 48), (112, 64), (512, 768)])
def test_on_the_cpu_a_row_has_the_bits_that_it_has_alone(depth, num_columns):
    x, weight, bias = random_layer(70, depth, num_columns, "cpu", torch.float32)
    assert not rows_that_differ(lambda rows: matmul(rows, weight, bias), x)


def test_a_library_s_product_gives_a_row_other_bits_among_others():
    """Else the test above could not fail."""
    x, weight, bias = random_layer(70, 512, 768, "cpu", torch.float32)
    assert rows_that_differ(lambda rows: linear(rows, weight, bias), x)


def test_rows_of_the_kernel_are_independent(device):
    x, weight, bias = random_layer(70, 80, 97, device, torch.float32)
    assert not rows_that_differ(lambda rows: matmul_triton(rows, weight, bias), x)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("depth", "num_columns"), [(4096, 6144), (14336, 4096), (1000, 1027)])
def test_on_the_gpu_rows_of_a_model_s_layers_are_independent(dtype, depth, num_columns):
    x, weight, bias = random_layer(2 * TILING_16_BIT.tile_rows + 9, depth, num_columns, "cuda", dtype)
    assert not rows_that_differ(lambda rows: matmul(rows, weight, bias), x)


def test_no_rows_make_no_rows():
    x, weight, bias = random_layer(3, 48, 97, "cpu", torch.float32)
    assert matmul(x[:0], weight, bias).shape == (0, 97)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 3)}, "weight has shape"),
        ({"x": torch.zeros(4)}, "x has shape"),
        ({"x": torch.zeros(2, 4, dtype=torch.float64)}, "x is float64"),
        ({"x": torch.zeros(4, 2).T}, "x of shape"),
        ({"weight": torch.zeros(5, 4, dtype=torch.float16)}, "weight is float16"),
        ({"weight": torch.zeros(4, 5).T}, "weight of shape"),
        ({"bias": torch.zeros(4)}, "bias has shape"),
        ({"bias": torch.zeros(5, dtype=torch.float16)}, "bias is float16"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(changes, message):
    arguments = {"x": torch.zeros(2, 4), "weight": torch.zeros(5, 4), "bias": torch.zeros(5)} | changes
    with pytest.raises(ValueError, match=message):
        matmul(**arguments)
