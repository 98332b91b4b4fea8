"""Changes of intensity against batchgeneratorsv2 under the same parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from torch import Tensor

from maskmed_zoo.data.augmentation import intensity, separable


@pytest.fixture
def image() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 20, 17, 24, generator=generator) * 1.3 + 0.4


@pytest.mark.parametrize("factor", [0.75, 1.2])
def test_contrast(image: Tensor, factor: float) -> None:
    theirs = ContrastTransform((factor, factor), True, False, 1.0)(image=image.clone())["image"]
    intensity.apply_contrast(image[0], factor)
    torch.testing.assert_close(image, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("exponent", [0.7, 1.5])
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("is_constant", [False, True])
def test_gamma(image: Tensor, exponent: float, inverted: bool, is_constant: bool) -> None:
    if is_constant:
        image.fill_(1.5)
    theirs = GammaTransform((exponent, exponent), float(inverted), False, 1.0, 1.0)(image=image.clone())["image"]
    intensity.apply_gamma(image[0], exponent, inverted=inverted)
    torch.testing.assert_close(image, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sigmas", [(0.5, 0.75, 1.0), (0.58, 0.92, 0.66)])
def test_blur(image: Tensor, sigmas: tuple[float, float, float]) -> None:
    theirs = GaussianBlurTransform((0.5, 1.0), p_per_channel=1)
    changed = theirs.apply({"image": image.clone()}, apply_to_channel=torch.tensor([True]), sigmas=[list(sigmas)])
    separable.apply_blur(image[0], sigmas)
    torch.testing.assert_close(image, changed["image"], atol=1e-5, rtol=1e-5)


def test_blur_of_patches_thinner_than_the_kernel() -> None:
    thin = torch.randn(1, 2, 9, 1)
    before = thin.clone()
    separable.apply_blur(thin[0], (1.0, 0.5, 1.0))
    assert thin.isfinite().all()
    assert thin.std() < before.std()
    flat = torch.full((1, 2, 9, 1), 3.0)
    separable.apply_blur(flat[0], (1.0, 0.5, 1.0))
    torch.testing.assert_close(flat, torch.full_like(flat, 3.0))


@pytest.mark.parametrize(("scale", "kept"), [(0.5, None), (0.77, None), (0.63, 1)])
def test_low_resolution(image: Tensor, scale: float, kept: int | None) -> None:
    theirs = SimulateLowResolutionTransform((scale, scale), False, True, (kept,) if kept is not None else None)  # type: ignore[arg-type]
    expected = theirs(image=image.clone())["image"]
    separable.apply_low_resolution(image[0], [1.0 if axis == kept else scale for axis in range(3)])
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-5)


def test_noise_is_one_draw_for_all_channels() -> None:
    blank = torch.zeros(3, 20, 20, 20)
    intensity.noise(blank, np.random.default_rng(0))
    spread = blank.flatten(1).std(1)
    assert 0 < spread.max() < 0.11
    assert spread.max() / spread.min() < 1.1
    assert not torch.equal(blank[0], blank[1])
