"""The table of cosines and sines that the rotary embedding reads."""

import math

import torch
from torch import Tensor

from pbench.engine.model_config import ModelConfig
from pbench.engine.rope_scaling import RopeScaling


def rotary_table(config: ModelConfig, device: torch.device) -> Tensor:
    """Compute the cosines (row 0) and sines (row 1) of every position's angles.

    The angle of position p in dimension pair i is ``p * inverse_frequencies[i]``, computed in float32 as
    transformers computes it, whatever the model's dtype.

    Returns:
        (max_position_embeddings, 2, head_dim / 2) float32 on ``device``.

    """
    frequencies = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling).to(device)
    positions = torch.arange(config.max_position_embeddings, dtype=torch.float32, device=device)
    angles = torch.outer(positions, frequencies)
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Compute radians per position for each pair of dimensions: ``theta ** (-2 i / head_dim)``, then scaled.

    "linear" divides all of them by the factor. "llama3" looks at the wavelength 2 pi / frequency in tokens:
    beyond ``original / low_freq_factor`` the frequency is divided by the factor, below
    ``original / high_freq_factor`` it is kept, and between the two it is interpolated linearly in
    ``original / wavelength``.

    Sources: Su et al. 2021, "RoFormer", section 3.4.3; the scaled ones as transformers' ROPE_INIT_FUNCTIONS
    (modeling_rope_utils.py) compute them, in the same order of float32 operations.

    Returns:
        (head_dim / 2,) float32 on the CPU.

    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    frequencies = 1.0 / (theta**exponents)
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor

    original = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = 2 * math.pi / frequencies
    share_kept = (original / wavelengths - low) / (high - low)
    ramp = (1 - share_kept) * frequencies / scaling.factor + share_kept * frequencies
    scaled = torch.where(wavelengths > original / low, frequencies / scaling.factor, frequencies)
    is_between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(is_between, ramp, scaled)
