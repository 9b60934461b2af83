import pytest
import torch
from torch.nn.functional import linear

from pbench.kernels.few_rows_matmul import suits_hopper
from pbench.kernels.gated_matmul import (
    can_hold_gated,
    gated_matmul,
    gated_matmul_reference,
    gated_matmul_triton,
    num_gated_programs,
)
from pbench.kernels.silu_and_mul import silu_and_mul_reference

# Rows on both sides of every change of tiles, columns and depths on both sides of a tile's edge.
SHAPES = [(1, 8, 8), (16, 264, 70), (17, 136, 97), (33, 48, 64), (65, 128, 33), (130, 72, 130), (300, 24, 16)]


def random_layer(num_rows, depth, num_columns, device, dtype):
    generator = torch.Generator().manual_seed(num_rows + depth)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((num_rows, depth), (2 * num_columns, depth)))
    return x.to(device, dtype), (weight / depth**0.5).to(device, dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_the_formula(device, attention_dtype, shape):
    dtype, tolerance = attention_dtype
    x, weight = random_layer(*shape, device, dtype)
    out = gated_matmul_triton(x, weight)
    assert out.dtype is dtype
    expected = gated_matmul_reference(x.double(), weight.double())
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_it_is_the_product_and_then_the_activation():
    x, weight = random_layer(5, 48, 70, "cpu", torch.float64)
    expected = silu_and_mul_reference(linear(x, weight))
    torch.testing.assert_close(gated_matmul_reference(x, weight), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 16, 31, 64, 100, 128, 177, 256])
@pytest.mark.parametrize(("depth", "num_columns"), [(1024, 3072), (2048, 4096), (1000, 1027)])
def test_kernel_is_right_at_the_sizes_of_a_model(num_rows, depth, num_columns):
    """In a row, each of which starts while the one before it ends, and its input is overwritten in between."""
    layers = [random_layer(num_rows + repeat, depth, num_columns, "cuda", torch.bfloat16) for repeat in range(2)]
    x = torch.empty_like(layers[0][0])
    for repeat in range(4):
        source, weight = layers[repeat % 2]
        x.copy_(source[:num_rows])
        out = gated_matmul(x, weight)
        expected = gated_matmul_reference(source[:num_rows].double(), weight.double())
        torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("depth", "num_columns"), [(1024, 3072), (136, 8), (1000, 1032)])
def test_kernel_of_hopper_is_the_formula(dtype, depth, num_columns):
    for num_rows in (1, 16, 17, 40, 64, 65):  # on both sides of every change of tiles, and two tiles
        x, weight = random_layer(num_rows, depth, num_columns, "cuda", dtype)
        if not suits_hopper(x):
            pytest.skip("this GPU is no Hopper")
        from pbench.kernels.hopper_few_rows import hopper_gated

        expected = gated_matmul_reference(x.double(), weight.double())
        torch.testing.assert_close(hopper_gated(x, weight).double(), expected, rtol=1e-2, atol=1e-2)
        assert hopper_gated(x[:0], weight).shape == (0, num_columns)


def test_programs_are_counted_by_tiles():
    assert num_gated_programs(256, 3072, num_sms=132) == 4 * 48
    assert num_gated_programs(128, 3072, num_sms=132) == 2 * 96
    assert num_gated_programs(64, 14336, num_sms=132) == 224


def test_weights_are_held_where_all_of_them_fit_on_the_device():
    assert can_hold_gated(64, 3072, 1024, num_sms=132)
    assert not can_hold_gated(65, 3072, 1024, num_sms=132)  # not one tile of rows
    assert not can_hold_gated(64, 4352, 1024, num_sms=132)
    assert not can_hold_gated(64, 3072, 1032, num_sms=132)
    assert not can_hold_gated(64, 3068, 1024, num_sms=132)  # gate and up take turns by 8 rows


def test_no_rows_make_no_rows(device):
    x, weight = random_layer(3, 48, 97, device, torch.float32)
    assert gated_matmul_triton(x[:0], weight).shape == (0, 97)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 8)}, "weight has shape"),
        ({"weight": torch.zeros(5, 4)}, "weight has 5 rows; expected an even number"),
        ({"x": torch.zeros(4, 2).T}, "x of shape"),
        ({"weight": torch.zeros(6, 4, dtype=torch.float16)}, "weight is float16"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(changes, message):
    arguments = {"x": torch.zeros(2, 4), "weight": torch.zeros(6, 4)} | changes
    with pytest.raises(ValueError, match=message):
        gated_matmul(**arguments)
