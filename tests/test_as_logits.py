"""Networks as MONAI's tools want them: one tensor, whose softmax are the probabilities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from monai.metrics.meandice import DiceMetric
from monai.networks.nets.basic_unet import BasicUNet
from monai.transforms.post.array import AsDiscrete
from torch import Tensor, nn

import maskmed_zoo as zoo
from maskmed_zoo.errors import ArgumentError

POINTWISE = {"model.head.kind": "pointwise", "model.loss.kind": "ce_dice"}


@pytest.mark.parametrize("head", ["masked_query", "pointwise", "learned_class"])
def test_its_softmax_is_what_the_model_predicts(head: str, tiny_recipe: Path) -> None:
    torch.manual_seed(0)
    settings = {"model.head": {"kind": head}} | ({} if head == "masked_query" else {"model.loss.kind": "ce_dice"})
    model = zoo.create(zoo.load_recipe(tiny_recipe, settings)).eval()
    image = torch.randn(2, 1, 8, 16, 16)
    with torch.no_grad():
        found, expected = zoo.as_logits(model)(image), model.predict(image)
        stage = model(image).stages[0]
    assert found.shape == (2, 3, 8, 16, 16)
    torch.testing.assert_close(found.softmax(1), expected.exp(), rtol=1e-4, atol=1e-5)
    assert (stage.logits is None) == (head == "masked_query")
    if stage.logits is not None:
        assert torch.equal(found, stage.logits)


def test_it_is_the_same_network(tiny_recipe: Path) -> None:
    model = zoo.create(zoo.load_recipe(tiny_recipe, POINTWISE))
    network = zoo.as_logits(model)
    network(torch.randn(1, 1, 8, 16, 16)).sum().backward()
    assert next(model.parameters()).grad is not None
    assert zoo.load_weights(network, model.state_dict()).share == 1
    network.eval()
    assert not model.training


def test_in_monais_window_and_metric(tiny_recipe: Path) -> None:
    """Two windows that share two thirds, by MONAI and by hand; and a Dice of 1 with itself."""
    model = zoo.create(zoo.load_recipe(tiny_recipe, POINTWISE)).eval()
    image = torch.randn(1, 1, 8, 16, 24)
    with torch.inference_mode():
        found = sliding_window_inference(image, (8, 16, 16), 1, zoo.as_logits(model), overlap=0.5)
        assert isinstance(found, Tensor)
        total, count = torch.zeros_like(found), torch.zeros(24)
        for start in (0, 8):
            stage = model(image[..., start : start + 16]).stages[0]
            total[..., start : start + 16] += stage.logits
            count[start : start + 16] += 1
    torch.testing.assert_close(found, total / count, rtol=1e-4, atol=1e-5)
    one_hot = torch.as_tensor(AsDiscrete(argmax=True, to_onehot=3)(found[0]))[None]
    dice = DiceMetric(include_background=True, ignore_empty=False)
    dice(one_hot, one_hot)
    assert float(torch.as_tensor(dice.aggregate())) == 1


def test_attached_heads_too_and_nothing_else() -> None:
    body = BasicUNet(in_channels=1, out_channels=2, features=(4, 4, 8, 8, 8, 4))
    attached = zoo.attach_head(body, "pointwise", num_classes=3, patch_size=(32, 32, 32)).eval()
    with torch.no_grad():
        assert zoo.as_logits(attached)(torch.randn(1, 1, 32, 32, 32)).shape == (1, 3, 32, 32, 32)
    with pytest.raises(ArgumentError, match="model: expected a network, as 'create' or 'attach_head' gives it"):
        zoo.as_logits(nn.Identity())  # type: ignore[arg-type]
