import pytest
import torch

from pbench.kernels.few_rows_matmul import (
    MAX_PARTS,
    can_hold_parts,
    few_rows_matmul,
    few_rows_matmul_reference,
    few_rows_matmul_triton,
    few_rows_parts,
    few_rows_parts_reference,
    few_rows_parts_triton,
    few_rows_tiling,
    held_tile,
    num_parts_for,
    suits_hopper,
)

# Rows on both sides of every change of tiles, columns and depths on both sides of a tile's edge; the last part of
# three is short, and of eight some are empty.
SHAPES = [(1, 8, 8), (16, 264, 70), (17, 136, 97), (33, 640, 64), (65, 512, 33), (130, 144, 130), (300, 24, 16)]


def random_layer(num_rows, depth, num_columns, device, dtype):
    generator = torch.Generator().manual_seed(num_rows + depth)
    x, weight, bias = (
        torch.randn(shape, generator=generator) for shape in ((num_rows, depth), (num_columns, depth), (num_columns,))
    )
    return x.to(device, dtype), (weight / depth**0.5).to(device, dtype), bias.to(device, dtype)


@pytest.mark.parametrize(("shape", "has_bias"), [(shape, i % 2 == 0) for i, shape in enumerate(SHAPES)])
def test_kernel_is_the_formula(device, attention_dtype, shape, has_bias):
    dtype, tolerance = attention_dtype
    x, weight, bias = random_layer(*shape, device, dtype)
    out = few_rows_matmul_triton(x, weight, bias if has_bias else None)
    assert out.dtype is dtype
    expected = few_rows_matmul_reference(x.double(), weight.double(), bias.double() if has_bias else None)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_parts", [3, MAX_PARTS])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_are_those_of_the_reference(device, attention_dtype, shape, num_parts):
    dtype, _ = attention_dtype
    x, weight, _ = random_layer(*shape, device, dtype)
    parts = few_rows_parts_triton(x, weight, num_parts)
    assert parts.dtype is torch.float32
    expected = few_rows_parts_reference(x.double(), weight.double(), num_parts)
    torch.testing.assert_close(parts.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_parts", [1, 2, 3, MAX_PARTS])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_add_up_to_the_product(shape, num_parts):
    x, weight, _ = random_layer(*shape, "cpu", torch.float64)
    summed = few_rows_parts_reference(x, weight, num_parts).sum(0)
    torch.testing.assert_close(summed, x @ weight.T, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 16, 31, 64, 100, 128, 177, 256])
@pytest.mark.parametrize(("depth", "num_columns"), [(2048, 1024), (3072, 1024), (8192, 2048), (1000, 1027)])
def test_kernels_are_right_at_the_sizes_of_a_model(num_rows, depth, num_columns):
    """In a chain, each of which starts while the one before it ends, and overwrites what that one reads."""
    layers = [random_layer(num_rows, depth, num_columns, "cuda", torch.bfloat16) for _ in range(2)]
    x = torch.empty_like(layers[0][0])
    for repeat in range(4):
        source, weight, bias = layers[repeat % 2]
        x.copy_(source)
        parts = few_rows_parts(x, weight)
        out = few_rows_matmul(x, weight, bias)
        exact = source.double() @ weight.double().T
        torch.testing.assert_close(parts.double().sum(0), exact, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out.double(), exact + bias.double(), rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("depth", "num_columns", "num_parts"), [(2048, 1024, 4), (3072, 1024, 4), (1000, 1027, 3)])
def test_parts_of_hopper_are_those_of_the_reference(dtype, depth, num_columns, num_parts):
    for num_rows in (1, 16, 17, 64, 65, 96, 99, 128, 144, 150, 161, 177, 209, 256):  # every tile, whole and in part
        x, weight, _ = random_layer(num_rows, depth, num_columns, "cuda", dtype)
        if not suits_hopper(x):
            pytest.skip("this GPU is no Hopper")
        from pbench.kernels.hopper_few_rows import hopper_parts

        expected = few_rows_parts_reference(x.double(), weight.double(), num_parts)
        parts = hopper_parts(x, weight, num_parts)
        torch.testing.assert_close(parts.double(), expected, rtol=1e-4, atol=1e-4)
        assert hopper_parts(x[:0], weight, num_parts).shape == (num_parts, 0, num_columns)


def test_there_are_as_many_parts_as_keep_multiprocessors_busy():
    assert num_parts_for(64, 1024, 2048, num_sms=132) == MAX_PARTS
    assert num_parts_for(176, 1024, 3072, num_sms=132) == 4
    assert num_parts_for(64, 4096, 4096, num_sms=132) == 2
    assert num_parts_for(256, 4096, 14336, num_sms=132) == 1
    assert num_parts_for(8, 64, 128, num_sms=132) == 1  # a part has two tiles at least


def test_tiles_grow_with_the_rows():
    tiles = [few_rows_tiling(num_rows).tile_rows for num_rows in (1, 16, 17, 32, 33, 256)]
    assert tiles == [16, 16, 32, 32, 64, 64]


def test_tiles_grow_with_the_rows_where_weights_are_held():
    assert [held_tile(num_rows)[0] for num_rows in (1, 16, 17, 33, 64)] == [16, 16, 32, 64, 64]
    assert [held_tile(num_rows) for num_rows in (65, 96, 112, 128)] == [(32, 16), (32, 16), (64, 0), (64, 0)]
    assert [held_tile(num_rows) for num_rows in (144, 160, 176, 192)] == [(64, 16), (64, 16), (64, 32), (64, 32)]
    assert [held_tile(num_rows) for num_rows in (208, 256, 257, 1000)] == 4 * [(128, 0)]
    assert held_tile(144, is_gated=True) == (64, 0)
    for num_rows in range(1, 257):
        tile = held_tile(num_rows).num_rows
        assert tile >= num_rows if num_rows <= 64 else tile < num_rows <= 2 * tile


def test_weights_are_held_where_all_programs_run_at_once():
    assert can_hold_parts(256, 1024, 3072, num_sms=132)
    assert not can_hold_parts(257, 1024, 3072, num_sms=132)
    assert not can_hold_parts(64, 2176, 2048, num_sms=132)
    assert not can_hold_parts(64, 1024, 4104, num_sms=132)  # a part is too deep
    assert not can_hold_parts(64, 1024, 1016, num_sms=132)  # and should have two tiles at least


def test_no_rows_make_no_rows(device):
    x, weight, bias = random_layer(3, 48, 97, device, torch.float32)
    assert few_rows_matmul(x[:0], weight, bias).shape == (0, 97)
    assert few_rows_parts_triton(x[:0], weight, 2).shape == (2, 0, 97)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 8)}, "weight has shape"),
        ({"x": torch.zeros(4)}, "x has shape"),
        ({"x": torch.zeros(2, 4, dtype=torch.float64)}, "x is float64"),
        ({"x": torch.zeros(4, 2).T}, "x of shape"),
        ({"x": torch.zeros(2, 3), "weight": torch.zeros(5, 3)}, "must be a multiple of 16 bytes"),
        ({"weight": torch.zeros(5, 4, dtype=torch.float16)}, "weight is float16"),
        ({"weight": torch.zeros(4, 5).T}, "weight of shape"),
        ({"bias": torch.zeros(4)}, "bias has shape"),
        ({"bias": torch.zeros(5, dtype=torch.float16)}, "bias is float16"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(changes, message):
    arguments = {"x": torch.zeros(2, 4), "weight": torch.zeros(5, 4), "bias": torch.zeros(5)} | changes
    with pytest.raises(ValueError, match=message):
        few_rows_matmul(**arguments)
