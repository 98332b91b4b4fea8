"""The light policy: rotation in mm, zoom, and changes of intensity that leave things where they are."""

from __future__ import annotations

import numpy as np
import torch

from maskmed_zoo.data.augmentation import light
from maskmed_zoo.recipe.schema import LightAugmentation


def test_rotation_is_physical() -> None:
    """With thick slices, a rotated ball stays a ball in mm: its second moments in mm stay equal along every axis."""
    spacing = (4.0, 1.0, 1.0)
    size = (16, 64, 64)
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in size], indexing="ij"), -1) * spacing
    ball = torch.from_numpy(np.exp(-0.5 * ((grid / 8.0) ** 2).sum(-1))).float()[None]
    config = LightAugmentation(spatial_probability=1, rotation=30, scale=(1.0, 1.0))
    for seed in range(3):
        matrix = light.random_matrix(config, spacing, np.random.default_rng(seed))
        assert matrix is not None
        assert not np.allclose(matrix, np.eye(3))
        turned = light.apply_matrix(ball, matrix, size, nearest=False)[0].numpy()
        moments = [(turned * grid[..., axis] ** 2).sum() / turned.sum() for axis in range(3)]
        np.testing.assert_allclose(moments, 64, rtol=0.06)


def test_zoom_and_source_region() -> None:
    config = LightAugmentation(spatial_probability=1, rotation=0, scale=(2.0, 2.0))
    matrix = light.random_matrix(config, (1, 1, 1), np.random.default_rng(0))
    assert matrix is not None
    np.testing.assert_allclose(matrix, np.eye(3) / 2)
    image = torch.zeros(1, 8, 8, 8)
    image[:, 3:5, 3:5, 3:5] = 1
    assert int((light.apply_matrix(image, matrix, (8, 8, 8), nearest=True) > 0).sum()) == 4**3
    assert light.source_size(matrix, (8, 8, 8)) == (6, 6, 6)


def test_intensity_changes_values_not_places() -> None:
    image = torch.zeros(1, 8, 8, 8)
    image[:, :, :, 4:] = 1
    config = LightAugmentation(intensity_probability=1)
    changed = light.random_intensity(image, config, np.random.default_rng(1))
    assert changed.shape == image.shape
    assert not torch.equal(changed, image)
    assert changed[..., 6:].mean() > changed[..., :2].mean()
    same = light.random_intensity(image, LightAugmentation(intensity_probability=0), np.random.default_rng(1))
    assert torch.equal(same, image)
