import pytest
import torch

from pbench.kernels.copy_blocks import copy_blocks, copy_blocks_reference, copy_blocks_triton


@pytest.mark.parametrize("copy", [copy_blocks_triton, copy_blocks_reference, copy_blocks])
@pytest.mark.parametrize(
    ("num_layers", "num_kv_heads", "block_size", "head_dim", "pairs"),
    [
        (1, 1, 1, 16, [(0, 5)]),
        (3, 2, 16, 80, [(4, 1), (0, 2), (4, 3)]),  # one source twice
        (2, 8, 64, 128, [(5, 0)]),  # several tiles a block
        (2, 1, 8, 48, []),
    ],
)
def test_destinations_become_their_sources_and_no_other_block_changes(
    device, dtype_and_tolerance, copy, num_layers, num_kv_heads, block_size, head_dim, pairs
):
    generator = torch.Generator().manual_seed(1)
    pool = torch.randn(num_layers, 6, 2, num_kv_heads, block_size, head_dim, generator=generator)
    pool = pool.to(device, dtype_and_tolerance[0])
    expected = pool.clone()
    for source, destination in pairs:
        expected[:, destination] = expected[:, source]
    copy(pool, torch.tensor(pairs, dtype=torch.int64, device=device).view(-1, 2))
    assert torch.equal(pool, expected)


@pytest.mark.gpu
def test_blocks_beyond_the_reach_of_32_bits():
    num_blocks = 2**31 // (2 * 8 * 16 * 128) + 2
    pool = torch.zeros(2, num_blocks, 2, 8, 16, 128, dtype=torch.bfloat16, device="cuda")
    pool[:, -1] = torch.randn(2, 2, 8, 16, 128, device="cuda")
    copy_blocks(pool, torch.tensor([[num_blocks - 1, num_blocks - 2]], device="cuda"))
    assert torch.equal(pool[:, -2], pool[:, -1])
    assert not pool[:, -3].any()


@pytest.mark.parametrize(
    ("pool", "pairs", "message"),
    [
        (torch.zeros(4, 2, 2, 8, 16), torch.zeros(1, 2, dtype=torch.int64), "pool has shape"),
        (torch.zeros(4, 3, 2, 2, 8, 16).transpose(0, 1), torch.zeros(1, 2, dtype=torch.int64), "pool of shape"),
        (torch.zeros(1, 4, 2, 2, 8, 16), torch.zeros(1, 3, dtype=torch.int64), "pairs has shape"),
        (torch.zeros(1, 4, 2, 2, 8, 16), torch.zeros(1, 2, dtype=torch.int32), "pairs is int32; expected int64"),
        (torch.zeros(1, 4, 2, 2, 8, 16), torch.zeros(2, 3, dtype=torch.int64).T[:2], "pairs of shape"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(pool, pairs, message):
    with pytest.raises(ValueError, match=message):
        copy_blocks(pool, pairs)
