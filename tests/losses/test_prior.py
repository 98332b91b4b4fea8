"""`prior_noise`: reference masks with noise as where the first block looks, from the loss through trainer and head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskmed_zoo.errors import JointError
from maskmed_zoo.heads.masked_query import MaskedQueryHead
from maskmed_zoo.losses.set_criterion import SetCriterion, SetCriterionConfig
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.trainer import Trainer
from tests.heads.test_query_heads import build, stages

CLASSES, IGNORE, SIZE = 3, 3, (8, 16, 16)


def example() -> tuple[Tensor, Tensor]:
    """Labels of two samples and which are annotated: the first has no label 2, the second's is not annotated."""
    labels = torch.zeros(2, 16, 32, 32, dtype=torch.uint8)
    labels[:, 2:9, 5:20, 5:20] = 1
    labels[1, 10:, 20:, 20:] = 2
    labels[:, :2] = IGNORE
    return labels, torch.tensor([[True, True, True], [True, True, False]])


def prior(noise: float, share: float = 1.0) -> Tensor | None:
    loss = SetCriterion(num_classes=CLASSES, config=SetCriterionConfig(prior_noise=noise), ignore_label=IGNORE)
    labels, annotated = example()
    torch.manual_seed(0)
    return loss.prior(labels, SIZE, annotated=annotated, share=share)


def test_it_is_the_masks_with_some_voxels_flipped() -> None:
    assert prior(0) is None
    exact, noisy = prior(1e-9), prior(0.4)
    assert exact is not None
    assert noisy is not None
    assert exact.shape == (2, CLASSES, *SIZE)
    assert exact[:, 2].all(), "absent, and not annotated"
    assert exact[:, :, 0].all(), "ignored"
    assert exact[:, 1].sum().tolist() == 256 + 256 + 4 * 8 * 8 * 2
    assert exact[1, 0, 6, 12, 12], "of the label that is not annotated, which may be background"
    shares = (exact ^ noisy).flatten(2).float().mean(-1)[:, :2]
    assert ((shares > 0) & (shares < 0.4)).all()
    assert shares.max() > 2 * shares.min()
    everywhere = prior(0.4, share=0.0)
    assert everywhere is not None
    assert everywhere.all()


@pytest.mark.parametrize("masked_attention", ["hard", "soft"])
def test_the_first_block_looks_there(masked_attention: str) -> None:
    head, features = build("masked_query", masked_attention=masked_attention, num_queries=4), stages()
    assert isinstance(head, MaskedQueryHead)
    size = features[2].shape[2:]
    allowed = torch.rand(2, 3, *size) > 0.5
    allowed[:, :, 0, 0, 0] = True
    plain, given = head(features).stages[-1].queries, head(features, allowed).stages[-1].queries
    assert not torch.allclose(plain[:, :3], given[:, :3], atol=1e-3)
    torch.testing.assert_close(head(features, torch.ones_like(allowed)).stages[-1].queries, plain)
    mask = torch.cat([allowed, torch.ones(2, 1, *size).bool()], 1).flatten(2)
    due = head.decoder.step(0, head.decoder.initial(2), features[2], mask)
    torch.testing.assert_close(given, due, rtol=1e-4, atol=1e-5)
    with pytest.raises(JointError, match="'masked_attention: off' takes no prior"):
        build("masked_query", masked_attention="off")(features, allowed)


def test_only_training_has_it_and_ever_less(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, overrides=["model.loss.prior_noise=0.2", "train.amp=off"])
    trainer, seen = Trainer(recipe, torch.device("cpu")), list[Any]()
    trainer.model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1:]))
    patch, classes = recipe.data.patch_size, trainer.model.num_classes
    image = torch.randn(8, len(recipe.channels), *patch)
    labels = torch.randint(0, classes, (8, *patch))
    labels[:, : patch[0] // 2] = 0
    looked: list[float] = []
    for trainer.iteration in (0, recipe.train.iterations // 2, recipe.train.iterations):
        trainer.gradients(image, labels)
        ((given,),) = seen
        seen.clear()
        assert given.shape[2:] == trainer.model.decoder.out_spec.sizes(patch)[-1]
        looked.append((~given).flatten(1).any(1).float().mean().item())
    assert looked[0] == 1 > looked[1] > looked[2] == 0
    annotated = torch.ones(8, classes).bool()
    trainer.validate([{"image": image, "labels": labels, "annotated": annotated}])  # pyright: ignore
    assert seen == [()]
