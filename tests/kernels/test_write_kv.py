import pytest
import torch

from pbench.kernels.write_kv import write_kv, write_kv_reference, write_kv_triton


def make_case(device, dtype, num_kv_heads, head_dim, block_size, num_blocks, num_tokens):
    """A pool of NaN, tokens as slices of a packed projection, and distinct slots; every third token has none."""
    generator = torch.Generator().manual_seed(num_tokens)
    kv = torch.full((num_blocks, 2, num_kv_heads, block_size, head_dim), float("nan"))
    packed = torch.randn(num_tokens, 3 * num_kv_heads, head_dim, generator=generator)
    slots = torch.randperm(num_blocks * block_size, generator=generator)[:num_tokens]
    slots[2::3] = -1
    kv, packed = kv.to(device, dtype), packed.to(device, dtype)
    key, value = packed[:, num_kv_heads : 2 * num_kv_heads], packed[:, 2 * num_kv_heads :]
    return key, value, kv, slots.to(device)


@pytest.mark.parametrize("write", [write_kv_triton, write_kv_reference, write_kv])
@pytest.mark.parametrize(
    ("num_kv_heads", "head_dim", "block_size", "num_blocks", "num_tokens"),
    [
        (1, 16, 1, 9, 7),
        (2, 80, 8, 4, 20),
        (3, 96, 16, 3, 1),
        (8, 128, 16, 4, 33),
        (40, 128, 16, 1, 3),
        (2, 32, 50, 1, 50),
        (2, 32, 16, 4, 0),
    ],
)
def test_every_token_is_in_its_slot_and_no_other_slot_changes(
    device, dtype_and_tolerance, write, num_kv_heads, head_dim, block_size, num_blocks, num_tokens
):
    key, value, kv, slots = make_case(
        device, dtype_and_tolerance[0], num_kv_heads, head_dim, block_size, num_blocks, num_tokens
    )
    expected = kv.clone()
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[slot // block_size, 0, :, slot % block_size] = key[token]
            expected[slot // block_size, 1, :, slot % block_size] = value[token]
    write(key, value, kv, slots)
    assert torch.equal(kv.isnan(), expected.isnan())
    assert torch.equal(kv.nan_to_num(), expected.nan_to_num())


@pytest.mark.gpu
def test_slots_beyond_the_reach_of_32_bits():
    num_blocks = 2**31 // (2 * 8 * 16 * 128) + 2
    kv = torch.zeros(num_blocks, 2, 8, 16, 128, dtype=torch.bfloat16, device="cuda")
    key, value = torch.randn(2, 1, 8, 128, dtype=torch.bfloat16, device="cuda")
    write_kv(key, value, kv, torch.tensor([num_blocks * 16 - 1], device="cuda"))
    assert torch.equal(kv[-1, 0, :, -1], key[0])
    assert torch.equal(kv[-1, 1, :, -1], value[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": torch.zeros(3, 2, 32)}, "key has shape"),
        ({"key": torch.zeros(3, 32)}, "key has shape"),
        ({"value": torch.zeros(4, 2, 16)}, "value has shape"),
        ({"value": torch.zeros(3, 2, 16, dtype=torch.float16)}, "value is float16; expected float32"),
        ({"key": torch.zeros(3, 16, 2).mT}, "key has strides"),
        ({"slots": torch.zeros(3, dtype=torch.int32)}, "slots is int32; expected int64"),
        ({"slots": torch.zeros(2, dtype=torch.int64)}, "slots has shape"),
        ({"kv": torch.zeros(2, 2, 8, 16)}, "kv has shape"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(change, message):
    arguments = {
        "key": torch.zeros(3, 2, 16),
        "value": torch.zeros(3, 2, 16),
        "kv": torch.zeros(2, 2, 2, 8, 16),
        "slots": torch.arange(3),
    }
    write_kv(**arguments)
    with pytest.raises(ValueError, match=message):
        write_kv(**(arguments | change))
