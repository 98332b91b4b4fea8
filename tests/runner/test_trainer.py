"""Validation on patches: Dice over the patches in which a label was annotated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.metrics.meandice import compute_dice
from torch import nn
from torch.nn import functional as F

from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.trainer import Trainer

CPU = torch.device("cpu")
CLASSES = 4


class Says(nn.Module):
    """A network that answers with its input, a map of labels."""

    num_classes = CLASSES

    def forward(self, image: torch.Tensor) -> HeadOutput:
        logits = 10 * F.one_hot(image[:, 0].long(), CLASSES).movedim(-1, 1).float()
        return HeadOutput([StageOutput(logits=logits)])


def batches(ignore: int | None = None) -> list[Any]:
    """Two batches of two; the third label was annotated in the first sample alone, the second in all but that."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randint(0, CLASSES, (4, 5, 6, 7), generator=generator)
    noise = torch.randint(0, CLASSES, reference.shape, generator=generator)
    said = torch.where(torch.rand(reference.shape, generator=generator) < 0.6, reference, noise)
    annotated = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]).bool()
    missing = (~annotated)[:, None, None, None].expand(*reference.shape, -1)
    reference[missing.gather(-1, reference[..., None])[..., 0]] = 0
    if ignore is not None:
        reference[:, :2] = ignore
    parts = zip(said.float()[:, None].split(2), reference.split(2), annotated.split(2), strict=True)
    return [{"image": image, "labels": labels, "annotated": a} for image, labels, a in parts]


def expected(data: list[dict[str, torch.Tensor]], is_naive: bool) -> float:
    """MONAI's Dice of each label, the patches that count for it laid side by side."""
    said, reference, annotated = (
        torch.cat([batch[name] for batch in data]) for name in ("image", "labels", "annotated")
    )
    dice: list[float] = []
    for label in range(1, CLASSES):
        rows = torch.ones(len(said)).bool() if is_naive else annotated[:, label]
        keep = reference[rows] != CLASSES
        pair = [(array == label)[keep].float().view(1, 1, -1, 1, 1) for array in (said[rows, 0], reference[rows])]
        dice.append(float(compute_dice(*pair, include_background=True)))
    return sum(dice) / len(dice)


@pytest.mark.parametrize("ignore", [None, CLASSES])
def test_patch_dice_counts_a_label_where_it_was_looked_for(ignore: int | None, tiny_recipe: Path) -> None:
    trainer = Trainer(load_recipe(tiny_recipe), CPU)
    trainer.model, trainer.ignore_label = Says(), ignore
    data = batches(ignore)
    dice = trainer.validate(data).dice
    assert dice == pytest.approx(expected(data, is_naive=False), abs=1e-6)
    assert dice > expected(data, is_naive=True) + 0.05
    everywhere = [batch | {"annotated": torch.ones_like(batch["annotated"])} for batch in data]
    assert trainer.validate(everywhere).dice == pytest.approx(expected(data, is_naive=True), abs=1e-6)
    others = torch.tensor([[[1, 1, 0, 1], [1, 0, 1, 1]], [[1, 0, 1, 1], [1, 1, 0, 0]]]).bool()
    changed = [batch | {"annotated": rows} for batch, rows in zip(data, others, strict=True)]
    assert trainer.validate(changed).dice == pytest.approx(expected(changed, is_naive=False), abs=1e-6)
    nowhere = [batch | {"annotated": torch.tensor([[True, False, False, False]] * 2)} for batch in data]
    assert trainer.validate(nowhere).dice == 0
