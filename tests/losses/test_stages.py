"""Deep supervision: stage weights, and labels at coarser resolutions by nearest voxel and by max-pooling."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest
import torch

from maskmed_zoo.losses.stages import halving_weights, label_masks, nearest_labels, pool_max


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
    masks = torch.zeros(1, 2, 3, 4, 5)
    assert pool_max(masks, (3, 4, 5)) is masks


def test_an_organ_of_one_voxel_survives_at_a_sixteenth():
    labels = torch.zeros(1, 32, 16, 32, dtype=torch.int64)
    labels[0, 31, 0, 16] = 2
    masks = label_masks(labels, 3, (2, 1, 2))
    assert masks.shape == (1, 3, 2, 1, 2)
    assert masks.dtype == torch.float32
    assert torch.equal(masks[0, 2].nonzero(), torch.tensor([[1, 0, 1]]))
    assert (masks[0, 0] == 1).all()
    assert (masks[0, 1] == 0).all()
    assert (nearest_labels(labels, (2, 1, 2)) == 0).all()  # what nearest-voxel labels would make of it


def test_masks_at_full_resolution_are_one_hot_and_leave_other_values_out():
    labels = torch.tensor([0, 1, 2, 7]).view(1, 1, 2, 2)
    masks = label_masks(labels, 3, (1, 2, 2)).flatten(2)[0]
    assert torch.equal(masks, torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]))
