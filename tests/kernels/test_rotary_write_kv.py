from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from pbench.kernels.rms_norm import rms_norm_reference
from pbench.kernels.rotary_write_kv import (
    HeadNorms,
    Rotation,
    rotary_write_kv,
    rotary_write_kv_reference,
    rotary_write_kv_triton,
    rotate_reference,
)

EPS = 1e-5


def make_rotation(num_tokens: int, head_dim: int, max_positions: int = 64, device: str = "cpu") -> Rotation:
    frequencies = 10000 ** (-torch.arange(head_dim // 2, dtype=torch.float64) / (head_dim // 2))
    angles = torch.arange(max_positions)[:, None] * frequencies
    generator = torch.Generator().manual_seed(num_tokens)
    positions = torch.randint(0, max_positions, (num_tokens,), generator=generator)
    return Rotation(torch.stack((angles.cos(), angles.sin()), 1).float().to(device), positions.to(device))


@dataclass(frozen=True)
class Case:
    """Tokens as one packed projection, a pool of NaN, and distinct slots; every third token has none."""

    packed: torch.Tensor
    num_heads: int
    num_kv_heads: int
    rotation: Rotation
    kv: torch.Tensor
    slots: torch.Tensor

    def arguments(self) -> tuple[Any, ...]:
        parts = self.packed.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        return (*parts, self.rotation, self.kv, self.slots)

    def copy(self, dtype: torch.dtype) -> "Case":
        """The same numbers, apart."""
        norms = self.rotation.norms
        if norms is not None:
            norms = HeadNorms(norms.query_weight.to(dtype), norms.key_weight.to(dtype), norms.eps)
        return replace(
            self,
            packed=self.packed.to(dtype, copy=True),
            rotation=self.rotation._replace(norms=norms),
            kv=self.kv.to(dtype, copy=True),
        )


def make_case(device, dtype, num_tokens, num_heads, num_kv_heads, head_dim, block_size, has_norms):
    generator = torch.Generator().manual_seed(head_dim)
    num_blocks = num_tokens // block_size + 2
    packed = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, head_dim, generator=generator)
    rotation = make_rotation(num_tokens, head_dim, device=device)
    if has_norms:
        weights = 1 + torch.randn(2, head_dim, generator=generator) / 4
        rotation = rotation._replace(norms=HeadNorms(*weights.to(device, dtype), EPS))
    kv = torch.full((num_blocks, 2, num_kv_heads, block_size, head_dim), float("nan"))
    slots = torch.randperm(num_blocks * block_size, generator=generator)[:num_tokens]
    slots[2::3] = -1
    return Case(packed.to(device, dtype), num_heads, num_kv_heads, rotation, kv.to(device, dtype), slots.to(device))


SHAPES = pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "head_dim", "block_size"),
    [
        (5, 4, 4, 16, 1),
        (20, 8, 2, 80, 8),
        (1, 7, 1, 96, 16),
        (7, 32, 8, 128, 16),
        (3, 40, 40, 128, 50),
        (4, 5, 1, 256, 32),
        (0, 2, 1, 32, 16),
    ],
)
NORMS = pytest.mark.parametrize("has_norms", [False, True], ids=["plain", "normed"])


@NORMS
@SHAPES
def test_kernel_is_the_formula_and_no_other_slot_changes(
    device, dtype_and_tolerance, num_tokens, num_heads, num_kv_heads, head_dim, block_size, has_norms
):
    dtype, tolerance = dtype_and_tolerance
    case = make_case(device, dtype, num_tokens, num_heads, num_kv_heads, head_dim, block_size, has_norms)
    exact = case.copy(torch.float64)
    rotary_write_kv_reference(*exact.arguments())
    value = case.packed[:, num_heads + num_kv_heads :].clone()
    rotary_write_kv_triton(*case.arguments())
    # A norm is rounded, multiplied by its weight and rounded again before the rotation.
    tolerance *= 3 if has_norms else 1
    torch.testing.assert_close(
        case.packed[:, :num_heads].double(), exact.packed[:, :num_heads], rtol=tolerance, atol=tolerance
    )
    torch.testing.assert_close(case.kv.double(), exact.kv, rtol=tolerance, atol=tolerance, equal_nan=True)
    for token, slot in enumerate(case.slots.tolist()):
        if slot >= 0:  # values are moved, not computed
            assert torch.equal(case.kv[slot // block_size, 1, :, slot % block_size], value[token])
    assert int((~case.kv[:, 0, 0, :, 0].isnan()).sum()) == int((case.slots >= 0).sum())


@pytest.mark.parametrize("run", [rotary_write_kv_triton, rotary_write_kv_reference, rotary_write_kv])
@SHAPES
def test_rotation_and_writing_in_one_pass_are_those_of_two_bit_by_bit(
    run, num_tokens, num_heads, num_kv_heads, head_dim, block_size, device
):
    if device == "cuda":
        pytest.skip("the GPU multiplies and adds in one rounding, which torch's operations do not")
    # The interpreter truncates to bfloat16 and rounds to float16.
    case = make_case(device, torch.float16, num_tokens, num_heads, num_kv_heads, head_dim, block_size, False)
    query, key, value = (part.clone() for part in case.arguments()[:3])
    expected_kv = case.kv.clone()
    rotated = rotate_reference(key, case.rotation)
    for token, slot in enumerate(case.slots.tolist()):
        if slot >= 0:
            expected_kv[slot // block_size, 0, :, slot % block_size] = rotated[token]
            expected_kv[slot // block_size, 1, :, slot % block_size] = value[token]
    run(*case.arguments())
    assert torch.equal(case.packed[:, :num_heads], rotate_reference(query, case.rotation))
    assert torch.equal(case.kv.view(torch.int16), expected_kv.view(torch.int16))


@NORMS
def test_launcher_on_cpu_equals_transformers_exactly_in_float32(has_norms):
    case = make_case("cpu", torch.float32, 11, 6, 2, 32, 16, has_norms)
    query, key, *_ = (part.clone() for part in case.arguments()[:3])
    norms = case.rotation.norms
    if norms is not None:
        query, key = (rms_norm_reference(x, w, EPS) for x, w in ((query, norms[0]), (key, norms[1])))
    cos, sin = case.rotation.cos_sin[case.rotation.positions].repeat(1, 1, 2).unbind(1)  # (num_tokens, head_dim)
    expected_query, expected_key = apply_rotary_pos_emb(query, key, cos, sin, 1)
    rotary_write_kv(*case.arguments())
    assert torch.equal(case.packed[:, :6], expected_query)
    is_written = case.slots >= 0
    slots = case.slots[is_written]
    assert torch.equal(case.kv[slots // 16, 0, :, slots % 16], expected_key[is_written])


def test_rotation_keeps_lengths_and_turns_by_the_angle_between_positions():
    query, key = torch.randn(2, 1, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = make_rotation(1, 16)
    products = []
    for query_position, key_position in ((3, 1), (40, 38)):
        turned_query = rotate_reference(query, rotation._replace(positions=torch.tensor([query_position])))
        turned_key = rotate_reference(key, rotation._replace(positions=torch.tensor([key_position])))
        torch.testing.assert_close(turned_query.norm(), query.norm(), rtol=1e-6, atol=0)
        products.append((turned_query * turned_key).sum())
    torch.testing.assert_close(products[0], products[1], rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@NORMS
def test_launcher_is_right_at_the_sizes_of_a_model(has_norms):
    case = make_case("cuda", torch.bfloat16, 5000, 64, 8, 128, 16, has_norms)
    expected = case.copy(torch.bfloat16)
    rotary_write_kv_reference(*expected.arguments())
    rotary_write_kv(*case.arguments())
    tolerance = {"rtol": 1.6e-2, "atol": 8e-3}  # a step of bfloat16 where an operation before it rounds otherwise
    torch.testing.assert_close(case.packed[:, :64], expected.packed[:, :64], **tolerance)
    torch.testing.assert_close(case.kv, expected.kv, equal_nan=True, **tolerance)
    assert (case.packed[:, :64] == expected.packed[:, :64]).float().mean() > 0.99


@pytest.mark.gpu
def test_slots_beyond_the_reach_of_32_bits():
    num_blocks = 2**31 // (2 * 8 * 16 * 128) + 2
    kv = torch.zeros(num_blocks, 2, 8, 16, 128, dtype=torch.bfloat16, device="cuda")
    query, key, value = torch.randn(3, 1, 8, 128, dtype=torch.bfloat16, device="cuda")
    rotation = make_rotation(1, 128, device="cuda")._replace(positions=torch.zeros(1, dtype=torch.int64, device="cuda"))
    rotary_write_kv(query, key, value, rotation, kv, torch.tensor([num_blocks * 16 - 1], device="cuda"))
    assert torch.equal(kv[-1, 0, :, -1], key[0]), "position 0 is an angle of 0"
    assert torch.equal(kv[-1, 1, :, -1], value[0])


FLOAT16 = torch.float16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(3, 32)}, "query has shape"),
        ({"query": torch.zeros(3, 4, 32)}, "query has shape"),
        ({"query": torch.zeros(3, 4, 16, dtype=torch.int64)}, "query is int64"),
        ({"query": torch.zeros(3, 16, 4).mT}, "query has strides"),
        ({"key": torch.zeros(2, 2, 16)}, "key has shape"),
        ({"key": torch.zeros(3, 3, 16)}, "key has shape"),
        ({"key": torch.zeros(3, 2, 16, dtype=FLOAT16)}, "key is float16; expected float32"),
        ({"key": torch.zeros(3, 16, 2).mT}, "key has strides"),
        ({"value": torch.zeros(4, 2, 16)}, "value has shape"),
        ({"value": torch.zeros(3, 2, 16, dtype=FLOAT16)}, "value is float16; expected float32"),
        ({"cos_sin": torch.zeros(10, 2, 16)}, "cos_sin has shape"),
        ({"cos_sin": torch.zeros(10, 2, 8, dtype=FLOAT16)}, "cos_sin is float16; expected float32"),
        ({"positions": torch.zeros(3, dtype=torch.int32)}, "positions is int32; expected int64"),
        ({"positions": torch.zeros(4, dtype=torch.int64)}, "positions has shape"),
        ({"norms": HeadNorms(torch.ones(8), torch.ones(16), EPS)}, "query_weight has shape"),
        ({"norms": HeadNorms(torch.ones(16), torch.ones(16, dtype=FLOAT16), EPS)}, "key_weight is float16"),
        ({"slots": torch.zeros(3, dtype=torch.int32)}, "slots is int32; expected int64"),
        ({"slots": torch.zeros(2, dtype=torch.int64)}, "slots has shape"),
        ({"kv": torch.zeros(2, 2, 8, 16)}, "kv has shape"),
        ({"kv": torch.zeros(2, 2, 2, 8, 16, dtype=FLOAT16)}, "query is float32; expected float16"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(change, message):
    rotation = Rotation(torch.zeros(10, 2, 8), torch.zeros(3, dtype=torch.int64))
    arguments = {
        "query": torch.zeros(3, 4, 16),
        "key": torch.zeros(3, 2, 16),
        "value": torch.zeros(3, 2, 16),
        "rotation": rotation,
        "kv": torch.zeros(2, 2, 2, 8, 16),
        "slots": torch.arange(3),
    }
    rotary_write_kv(**arguments)
    of_rotation = {name: value for name, value in change.items() if name in Rotation._fields}
    others = {name: value for name, value in change.items() if name not in of_rotation}
    with pytest.raises(ValueError, match=message):
        rotary_write_kv(**(arguments | {"rotation": rotation._replace(**of_rotation)} | others))
