"""Every registered head names the layers that make its masks, and what they give makes them; wrong ones are refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from maskmed_zoo.contracts import Head
from maskmed_zoo.errors import JointError
from maskmed_zoo.explain.mask_embeddings import mask_embeddings
from maskmed_zoo.heads.learned_class import LearnedClassHead
from tests.contracts.test_components import Case, cases, perturb, stage_spec


@pytest.mark.parametrize("case", cases("head"))
def test_a_head_names_the_layers_that_make_its_masks(case: Case) -> None:
    """Masks are mask embeddings times features, but for a convolution's bias."""
    head, (stages,) = perturb(case.build()).eval(), case.inputs()
    assert isinstance(head, Head)
    assert head.mask_layers(), f"implement {case.cls.__name__}.mask_layers (see maskmed_zoo.contracts.Head)"
    with torch.inference_mode(), mask_embeddings(head) as embeddings:
        output = head(stages)
    assert len(embeddings) == len(output.stages)
    for stage, stride, embedding in zip(output.stages, head.out_strides, embeddings, strict=True):
        masks = stage.logits if stage.masks is None else stage.masks
        features = stages[stage_spec().strides.index(stride)]
        rest = (masks[0] - torch.einsum("nc,cdhw->ndhw", embedding, features[0])).flatten(1)
        torch.testing.assert_close(rest, rest[:, :1].expand_as(rest), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (lambda head: head.masks[:1], "names 1 layers for 2 outputs; name one per output"),
        (lambda head: [nn.Linear(4, 4), head.masks[1]], r"a Linear that returned nothing; expected an nn\.Conv3d of"),
        (lambda head: [head.pooling, head.masks[1]], r"an? AvgPool3d that returned \(1, 4, 8, 12, 8\); expected an"),
    ],
)
def test_layers_that_make_no_mask_embeddings_are_refused(named, message: str) -> None:
    class Wrong(LearnedClassHead):
        def mask_layers(self) -> Sequence[nn.Module]:
            return list(named(self))

    head = Wrong(in_spec=stage_spec(), num_classes=3)
    head.pooling = nn.AvgPool3d(1)
    head.masks[0] = nn.Sequential(head.pooling, head.masks[0])
    (stages,) = cases("head")[0].values[0].inputs()
    with pytest.raises(JointError, match=message), mask_embeddings(head):
        head(stages)
    assert not any(m._forward_hooks for m in head.modules()), "no hook is left behind"


def test_a_head_that_names_none_has_no_mask_embeddings() -> None:
    class Silent(LearnedClassHead):
        def mask_layers(self) -> Sequence[nn.Module]:
            return ()

    (stages,) = cases("head")[0].values[0].inputs()
    head = Silent(in_spec=stage_spec(), num_classes=3)
    with mask_embeddings(head) as embeddings:
        head(stages)
    assert embeddings == []
