"""`unetr_up`: what it hands on, and what does not fit fails in words. Its numbers are compared in tests/encoders."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.decoders.mednext_up import MedNeXtUpDecoder
from maskmed_zoo.decoders.unetr_up import UNETRUpConfig, UNETRUpDecoder
from maskmed_zoo.errors import JointError

SPEC = FeatureSpec((2, 3, 4), ((1, 1, 1), (1, 2, 2), (3, 2, 8)))
LEVELS = [torch.randn(1, c, *s) for c, s in zip(SPEC.channels, SPEC.sizes((6, 8, 16)), strict=True)]


def test_fewer_stages_are_the_finest_of_all():
    torch.manual_seed(0)
    every, finest = UNETRUpDecoder(in_spec=SPEC), UNETRUpDecoder(config=UNETRUpConfig(stages=1), in_spec=SPEC)
    finest.load_state_dict(every.state_dict())
    assert finest.out_spec == FeatureSpec((2,), ((1, 1, 1),))
    assert len(every(LEVELS)) == 2
    (found,) = finest(LEVELS)
    assert torch.equal(found, every(LEVELS)[0])


def test_refining_changes_the_finest_stage_alone():
    plain, refined = UNETRUpDecoder(in_spec=SPEC), UNETRUpDecoder(config=UNETRUpConfig(refine=True), in_spec=SPEC)
    assert refined.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    before, after = plain(LEVELS), refined(LEVELS)
    assert torch.equal(before[1], after[1])
    torch.testing.assert_close(after[0], refined.refine(before[0]))
    assert not torch.allclose(before[0], after[0])


@pytest.mark.parametrize("decoder", [UNETRUpDecoder, MedNeXtUpDecoder])
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (FeatureSpec((4,), ((1, 1, 1),)), "needs at least 2 levels, the encoder gives 1"),
        (FeatureSpec((4, 4, 4), ((1, 1, 1), (2, 2, 2), (4, 3, 4))), r"got \(4, 3, 4\) below \(2, 2, 2\) at level 2"),
    ],
    ids=["one level", "no multiple"],
)
def test_levels_that_do_not_fit_are_refused(decoder: type[nn.Module], spec: FeatureSpec, message: str):
    with pytest.raises(JointError, match=message) as caught:
        decoder(in_spec=spec)
    assert "\n" not in str(caught.value)


def test_more_stages_than_there_are_are_refused():
    with pytest.raises(JointError, match="makes 2 stages here, 'stages' asks for 3"):
        UNETRUpDecoder(config=UNETRUpConfig(stages=3), in_spec=SPEC)
