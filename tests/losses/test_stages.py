"""Deep supervision: stage weights, and labels at coarser resolutions by nearest voxel and by max-pooling."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest
import torch

from maskmed_zoo.losses.stages import halving_weights, nearest_labels, pool_max


def test_weights_halve_and_sum_to_one():
    assert halving_weights(5) == [float(Fraction(n, 31)) for n in (16, 8, 4, 2, 1)]
    assert halving_weights(1) == [1.0]
    for stages in range(1, 8):
        assert sum(halving_weights(stages)) == pytest.approx(1, abs=1e-12)


def test_the_lowest_stage_can_be_left_out_as_in_nnunet():
    assert halving_weights(5, skip_lowest=True) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])
    assert halving_weights(1, skip_lowest=True) == [1.0]
    assert halving_weights(2, skip_lowest=True) == [1.0, 0.0]


@pytest.mark.parametrize("size", [(4, 6, 3), (2, 3, 2), (8, 5, 3), (3, 4, 1), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_nearest_labels_take_the_voxel_whose_centre_is_nearest(size, dtype):
    """nnU-Net's rule (`nearest-exact`): output voxel i reads input voxel floor((i + 1/2) · n_in / n_out)."""
    labels = torch.arange(2 * 8 * 12 * 5).view(2, 8, 12, 5) % 200
    index = [
        [floor((i + Fraction(1, 2)) * Fraction(n, m)) for i in range(m)] for n, m in zip((8, 12, 5), size, strict=True)
    ]
    expected = labels[:, index[0]][:, :, index[1]][:, :, :, index[2]]
    output = nearest_labels(labels.to(dtype), size)
    assert output.dtype == dtype
    assert torch.equal(output.long(), expected)


def test_nothing_is_done_where_the_size_is_right():
    labels = torch.zeros(1, 3, 4, 5, dtype=torch.int64)
    assert nearest_labels(labels, (3, 4, 5)) is labels
    masks = torch.zeros(1, 2, 3, 4, 5, dtype=torch.bool)
    assert pool_max(masks, (3, 4, 5)) is masks


@pytest.mark.parametrize("size", [(4, 6, 4), (2, 3, 8), (1, 1, 1), (8, 4, 8), (3, 5, 8), (8, 12, 4), (5, 7, 3)])
def test_pooling_equals_that_of_torch(size):
    """Halving, thirds, mixed strides, and sizes that do not divide."""
    masks = torch.rand(2, 3, 8, 12, 8, generator=torch.Generator().manual_seed(0)) < 0.03
    pooled = pool_max(masks, size)
    assert pooled.dtype == torch.bool
    assert torch.equal(pooled, torch.nn.functional.adaptive_max_pool3d(masks.float(), size) > 0)


@pytest.mark.parametrize("factor", [16, 32])
def test_an_organ_of_one_voxel_survives(factor):
    labels = torch.zeros(1, 2 * factor, factor, 2 * factor, dtype=torch.int64)
    labels[0, 2 * factor - 1, 0, factor] = 2
    masks = pool_max(labels.unsqueeze(1) == torch.arange(3).view(1, -1, 1, 1, 1), (2, 1, 2))
    assert torch.equal(masks[0, 2].nonzero(), torch.tensor([[1, 0, 1]]))
    assert masks[0, 0].all()
    assert not masks[0, 1].any()
    assert (nearest_labels(labels, (2, 1, 2)) == 0).all()  # what nearest-voxel labels would make of it
