"""`mednext_up` at strides that MONAI's block does not have; at stride 2 tests/encoders compares it with MONAI."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.decoders.mednext_up import MedNeXtUpConfig, MedNeXtUpDecoder
from maskmed_zoo.errors import JointError
from maskmed_zoo.layers.mednext import UpBlock


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [(1, 2, 2), (1, 1, 1), (2, 2, 2), (3, 1, 4)])
def test_going_up_puts_a_voxel_at_the_end_of_its_cell(stride, kernel):
    """As at stride 2, where voxel i becomes voxel 2 i + 1."""
    torch.manual_seed(0)
    block = UpBlock(2, 3, MedNeXtUpConfig(kernel_size=kernel), 0, stride)
    with torch.no_grad():
        block.block.conv3.weight.zero_()  # the skip alone
        block.block.conv3.bias.zero_()
        block.block.res_conv.bias.zero_()
    x = torch.randn(1, 2, 2, 3, 4)
    found = block(x)
    assert found.shape == (1, 3, *(n * s for n, s in zip((2, 3, 4), stride, strict=True)))
    ends = (..., *(slice(s - 1, None, s) for s in stride))
    expected = torch.einsum("bidhw,io->bodhw", x, block.block.res_conv.weight[:, :, 0, 0, 0])
    torch.testing.assert_close(found[ends], expected)
    assert found.count_nonzero() == expected.count_nonzero()


def test_lower_levels_repeat_the_last_of_the_four_sizes():
    spec = FeatureSpec((2,) * 7, tuple((2**level,) * 3 for level in range(7)))
    decoder = MedNeXtUpDecoder(config=MedNeXtUpConfig(variant="L"), in_spec=spec)
    stages: Any = decoder.stages
    assert [len(stage) for stage in stages] == [3, 4, 8, 8, 8, 8]
    assert [stage[0].conv2.out_channels // 2 for stage in stages] == [3, 4, 8, 8, 8, 8]


def test_a_single_voxel_is_refused():
    spec = FeatureSpec((2, 2), ((1, 1, 1), (2, 2, 2)))
    with pytest.raises(JointError, match="decoder 'mednext_up' normalizes over voxels and has one left"):
        MedNeXtUpDecoder(in_spec=spec)([torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 2, 1, 1, 1)])
