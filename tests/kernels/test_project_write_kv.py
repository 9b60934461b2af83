from typing import NamedTuple

import pytest
import torch

from pbench.kernels.few_rows_matmul import few_rows_matmul_reference
from pbench.kernels.launch import FP8
from pbench.kernels.project_write_kv import project_write_kv, project_write_kv_reference, suits_hopper
from pbench.kernels.rotary_write_kv import HeadNorms, Rotation, rotary_write_kv_reference

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
MAX_POSITIONS = 2048


class Case(NamedTuple):
    """A layer and its tokens, a pool of NaN, and distinct slots; every third token has none."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    rotation: Rotation
    kv: torch.Tensor
    slots: torch.Tensor


def make_case(
    num_rows,
    depth=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    block_size=16,
    *,
    has_norms=True,
    has_bias=True,
    kv_dtype=None,
    dtype=FP32,
    device="cpu",
    seed=0,
):
    generator = torch.Generator(device).manual_seed(num_rows + seed)

    def random(*shape):
        return torch.randn(shape, generator=generator, device=device)

    num_columns = (num_heads + 2 * num_kv_heads) * head_dim
    angles = 6 * random(MAX_POSITIONS, head_dim // 2)
    positions = torch.randint(0, MAX_POSITIONS, (num_rows,), generator=generator, device=device)
    norms = HeadNorms(*(1 + random(2, head_dim) / 4).to(dtype), 1e-6) if has_norms else None
    num_blocks = num_rows // block_size + 2
    kv = torch.full((num_blocks, 2, num_kv_heads, block_size, head_dim), float("nan"), device=device)
    slots = torch.randperm(num_blocks * block_size, generator=generator, device=device)[:num_rows]
    slots[2::3] = -1
    return Case(
        random(num_rows, depth).to(dtype),
        (random(num_columns, depth) / depth**0.5).to(dtype),
        random(num_columns).to(dtype) if has_bias else None,
        Rotation(torch.stack((angles.cos(), angles.sin()), 1), positions, norms),
        kv.to(kv_dtype or dtype),
        slots,
    )


def copied(case):
    return case._replace(kv=case.kv.clone())


def assert_near(result, expected):
    """But for steps of rounding, where a sum was taken in another order; what was not written is still poison."""
    rtol, atol = {BF16: (2e-2, 4e-2), FP16: (3e-3, 8e-3), FP8: (0.13, 0.15)}[result.dtype]
    assert result.dtype is expected.dtype
    result, expected = result.float(), expected.float()
    torch.testing.assert_close(result, expected, rtol=rtol, atol=atol, equal_nan=True)
    assert ((result == expected) | expected.isnan()).float().mean() > 0.98


@pytest.mark.parametrize("has_norms", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("has_bias", [False, True], ids=["unbiased", "biased"])
def test_it_is_the_product_and_then_the_rotation(has_bias, has_norms):
    case = make_case(7, has_bias=has_bias, has_norms=has_norms)
    kv = case.kv.clone()
    heads = few_rows_matmul_reference(case.x, case.weight, case.bias).view(7, 8, 32).split((4, 2, 2), dim=1)
    rotary_write_kv_reference(*heads, case.rotation, kv, case.slots)
    assert torch.equal(project_write_kv(*case), heads[0])
    torch.testing.assert_close(case.kv, kv, rtol=0, atol=0, equal_nan=True)


SHAPES = {
    "qwen3-0.6b": {"depth": 1024, "num_heads": 16, "num_kv_heads": 8, "head_dim": 128, "has_bias": False},
    "llama-1b": {"depth": 2048, "num_heads": 32, "num_kv_heads": 8, "head_dim": 64, "has_norms": False},
    "wide": {"depth": 4096, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "block_size": 5},
    "odd": {"depth": 1000, "num_heads": 3, "num_kv_heads": 1, "head_dim": 64, "block_size": 1000},
    "short": {"depth": 40, "num_heads": 1, "num_kv_heads": 1, "head_dim": 128, "block_size": 32},
    "two kernels": {"depth": 264, "num_heads": 6, "num_kv_heads": 2, "head_dim": 80},
}


NUM_ROWS = [1, 16, 31, 64, 100, 128, 177, 256]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "num_rows", "dtype", "kv_dtype"),
    [
        *((name, num_rows, BF16, BF16) for name in SHAPES for num_rows in NUM_ROWS),
        *(("odd", num_rows, FP16, FP16) for num_rows in (16, 177)),
        *(("qwen3-0.6b", num_rows, BF16, FP8) for num_rows in (31, 100, 177)),
    ],
)
def test_kernel_is_right_at_the_sizes_of_a_model(name, num_rows, dtype, kv_dtype):
    """In a row, each of which starts while the one before it ends, and its input is overwritten in between."""
    shape = SHAPES[name]
    cases = [
        make_case(num_rows, dtype=dtype, kv_dtype=kv_dtype, device="cuda", seed=seed, **shape) for seed in range(2)
    ]
    assert suits_hopper(cases[0].x, cases[0].kv) == (
        shape["head_dim"] in (64, 128) and torch.cuda.get_device_capability() == (9, 0)
    )
    scales = {"key_scale": 0.25, "value_scale": 0.5} if kv_dtype is FP8 else {}
    x, out = torch.empty_like(cases[0].x), []
    for repeat in range(4):
        case = copied(cases[repeat % 2])._replace(x=x)
        x.copy_(cases[repeat % 2].x)
        torch.full((num_rows, shape["num_heads"], shape["head_dim"]), float("nan"), dtype=dtype, device="cuda")
        out.append((project_write_kv(*case, **scales), case.kv))
    for repeat, (query, kv) in enumerate(out):
        expected = copied(cases[repeat % 2])
        expected_query = project_write_kv_reference(*expected, **scales)
        assert_near(query, expected_query)
        assert_near(kv, expected.kv)


@pytest.mark.gpu
def test_slots_beyond_the_reach_of_32_bits():
    num_blocks = 2**31 // (2 * 8 * 16 * 128) + 2
    case = make_case(1, 64, 16, 8, 128, has_norms=False, dtype=BF16, device="cuda")
    kv = torch.zeros(num_blocks, 2, 8, 16, 128, dtype=BF16, device="cuda")
    case = case._replace(kv=kv, slots=torch.tensor([num_blocks * 16 - 1], device="cuda"))
    project_write_kv(*case)
    packed = few_rows_matmul_reference(case.x, case.weight, case.bias).view(1, -1, 128)
    assert_near(kv[-1, 1, :, -1], packed[0, -8:])
    assert int((kv != 0).any(dim=-1).sum()) == 16


def test_no_rows_write_nothing(device):
    case = make_case(3, device=device)
    case = case._replace(x=case.x[:0], slots=case.slots[:0], rotation=case.rotation._replace(positions=case.slots[:0]))
    assert project_write_kv(*case).shape == (0, 4, 32)
    assert case.kv.isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 32)}, "weight has shape"),
        ({"x": torch.zeros(3, 64, dtype=FP16)}, "weight is float32"),
        ({"weight": torch.zeros(255, 64), "bias": None}, "weight has 255 rows; expected those of 1 or more"),
        ({"weight": torch.zeros(128, 64), "bias": None}, "weight has 128 rows"),
        ({"bias": torch.zeros(3)}, "bias has shape"),
        ({"kv": torch.zeros(2, 2, 2, 8, 32, dtype=FP16)}, "x is float32; expected float16"),
        ({"slots": torch.zeros(2, dtype=torch.int64)}, "slots has shape"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(change, message):
    case = make_case(3)
    with pytest.raises(ValueError, match=message):
        project_write_kv(**(case._asdict() | change))
