"""Changes of intensities voxel by voxel: noise, brightness, contrast, gamma; images (c d h w) float32, in place.

Source: batchgeneratorsv2, `GaussianNoiseTransform`, `MultiplicativeBrightnessTransform`, `ContrastTransform`,
`GammaTransform`, with the arguments of nnU-Net's default trainer. Each step draws its parameters, a factor for each
channel, and applies them; what is applied is a function of its own, so that it can be compared.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NOISE_STD = (0.0, 0.1)
"""nnU-Net calls the range a variance and uses it as standard deviation."""
FACTORS = (0.75, 1.25)
GAMMAS = (0.7, 1.5)
_TINY = 1e-7


def draw_factor(rng: np.random.Generator, low: float, high: float) -> float:
    """A factor below 1 and one above 1 with probability 1/2 each, uniform in its half of the range."""
    return rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high)


def noise(image: Tensor, rng: np.random.Generator) -> None:
    """Gaussian noise of one standard deviation in all channels."""
    apply_noise(image, rng.uniform(*NOISE_STD), rng)


def brightness(image: Tensor, rng: np.random.Generator) -> None:
    """Every channel times a factor of its own."""
    for channel in image:
        apply_brightness(channel, draw_factor(rng, *FACTORS))


def contrast(image: Tensor, rng: np.random.Generator) -> None:
    """Every channel with a contrast of its own."""
    for channel in image:
        apply_contrast(channel, draw_factor(rng, *FACTORS))


def gamma(image: Tensor, rng: np.random.Generator, *, inverted: bool = False) -> None:
    """Every channel with a gamma of its own, on the negative image if `inverted`."""
    for channel in image:
        apply_gamma(channel, draw_factor(rng, *GAMMAS), inverted=inverted)


def apply_noise(image: Tensor, std: float, rng: np.random.Generator) -> None:
    """Every voxel with a draw of its own."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))  # twice as fast as NumPy's
    image.add_(torch.empty_like(image).normal_(generator=generator), alpha=std)


def apply_brightness(channel: Tensor, factor: float) -> None:
    """Values times a factor."""
    channel.mul_(factor)


def apply_contrast(channel: Tensor, factor: float) -> None:
    """Distances from the mean times a factor, clipped to the range from before."""
    low, high = (float(value) for value in torch.aminmax(channel))
    mean = float(channel.mean())
    channel.mul_(factor).add_(mean * (1 - factor)).clamp_(low, high)


def apply_gamma(channel: Tensor, exponent: float, *, inverted: bool) -> None:
    """The place in the channel's range to a power; mean and standard deviation stay as they were."""
    low, high = (float(value) for value in torch.aminmax(channel))
    sign, end = (-1.0, high) if inverted else (1.0, low)
    before, mean = float(channel.std()), float(channel.mean())  # torch.std_mean takes five times as long
    width = high - low
    # Subtracting first makes the end of the range exactly 0, which no rounding carries below it.
    channel.sub_(end).mul_(sign / max(width, _TINY)).pow_(exponent)
    after, here = float(channel.std()), float(channel.mean())
    scale = sign * width * before / max(after * width, _TINY)
    channel.mul_(scale).add_(mean - here * scale)
