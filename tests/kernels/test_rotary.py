import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from pbench.kernels.rotary import rotary_embedding, rotary_embedding_reference, rotary_embedding_triton


def make_case(device, dtype, num_tokens, num_heads, num_kv_heads, head_dim, max_positions=64):
    """Queries and keys as slices of one packed projection, with angles and positions."""
    generator = torch.Generator().manual_seed(head_dim)
    packed = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, head_dim, generator=generator)
    frequencies = 10000 ** (-torch.arange(head_dim // 2, dtype=torch.float64) / (head_dim // 2))
    angles = torch.arange(max_positions)[:, None] * frequencies
    cos_sin = torch.stack((angles.cos(), angles.sin()), 1).float().to(device)
    positions = torch.randint(0, max_positions, (num_tokens,), generator=generator).to(device)
    return packed.to(device, dtype), cos_sin, positions


def halves(packed, num_heads, num_kv_heads):
    return packed[:, :num_heads], packed[:, num_heads : num_heads + num_kv_heads]


@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "head_dim"),
    [(5, 4, 4, 16), (3, 8, 2, 80), (1, 7, 1, 96), (2, 32, 8, 128), (0, 2, 1, 32)],
)
def test_kernel_is_the_formula_and_leaves_the_values_alone(
    device, dtype_and_tolerance, num_tokens, num_heads, num_kv_heads, head_dim
):
    dtype, tolerance = dtype_and_tolerance
    packed, cos_sin, positions = make_case(device, dtype, num_tokens, num_heads, num_kv_heads, head_dim)
    expected = packed.double()
    rotary_embedding_reference(*halves(expected, num_heads, num_kv_heads), cos_sin, positions)
    value = packed[:, num_heads + num_kv_heads :].clone()
    rotary_embedding_triton(*halves(packed, num_heads, num_kv_heads), cos_sin, positions)
    torch.testing.assert_close(packed.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(packed[:, num_heads + num_kv_heads :], value)


def test_launcher_on_cpu_equals_transformers_exactly_in_float32():
    packed, cos_sin, positions = make_case("cpu", torch.float32, 11, 6, 2, 32)
    query, key = halves(packed, 6, 2)
    cos, sin = cos_sin[positions].repeat(1, 1, 2).unbind(1)  # (num_tokens, head_dim)
    expected = apply_rotary_pos_emb(query, key, cos, sin, 1)
    rotary_embedding(query, key, cos_sin, positions)
    assert torch.equal(query, expected[0])
    assert torch.equal(key, expected[1])


def test_reference_keeps_lengths_and_turns_by_the_angle_between_positions():
    packed, cos_sin, _ = make_case("cpu", torch.float64, 1, 1, 1, 16)
    query, key = packed[:, :1], packed[:, 1:2]
    products = []
    for query_position, key_position in ((3, 1), (40, 38)):
        turned_query, turned_key = query.clone(), key.clone()
        rotary_embedding_reference(turned_query, turned_query.clone(), cos_sin, torch.tensor([query_position]))
        rotary_embedding_reference(turned_key, turned_key.clone(), cos_sin, torch.tensor([key_position]))
        torch.testing.assert_close(turned_query.norm(), query.norm(), rtol=1e-6, atol=0)
        products.append((turned_query * turned_key).sum())
    torch.testing.assert_close(products[0], products[1], rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
def test_launcher_is_right_at_the_sizes_of_a_model():
    packed, cos_sin, positions = make_case("cuda", torch.bfloat16, 5000, 64, 8, 128, 8192)
    expected = packed.clone()
    rotary_embedding_reference(*halves(expected, 64, 8), cos_sin, positions)
    rotary_embedding(*halves(packed, 64, 8), cos_sin, positions)
    torch.testing.assert_close(packed, expected, rtol=8e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(3, 32)}, "query has shape"),
        ({"query": torch.zeros(3, 4, 15), "key": torch.zeros(3, 2, 15)}, "it must be even"),
        ({"query": torch.zeros(3, 4, 16, dtype=torch.int64)}, "query is int64"),
        ({"key": torch.zeros(2, 2, 16)}, "key has shape"),
        ({"key": torch.zeros(3, 2, 16, dtype=torch.float16)}, "key is float16; expected float32"),
        ({"key": torch.zeros(3, 16, 2).mT}, "key has strides"),
        ({"cos_sin": torch.zeros(10, 2, 16)}, "cos_sin has shape"),
        ({"cos_sin": torch.zeros(10, 2, 8, dtype=torch.float16)}, "cos_sin is float16; expected float32"),
        ({"positions": torch.zeros(3, dtype=torch.int32)}, "positions is int32; expected int64"),
        ({"positions": torch.zeros(4, dtype=torch.int64)}, "positions has shape"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(change, message):
    arguments = {
        "query": torch.zeros(3, 4, 16),
        "key": torch.zeros(3, 2, 16),
        "cos_sin": torch.zeros(10, 2, 8),
        "positions": torch.zeros(3, dtype=torch.int64),
    }
    rotary_embedding(**arguments)
    with pytest.raises(ValueError, match=message):
        rotary_embedding(**(arguments | change))
