"""Parallel, compiled and training modules around a network, or inside it, in file or module: no difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

import maskmed_zoo as zoo
from maskmed_zoo.errors import CheckpointError

PREFIXES = [
    "module.", "_orig_mod.", "model.", "net.", "network.", "module.model._orig_mod.", "model.module.",
    "net.network.model.", "_orig_mod.module.module.",
]  # fmt: skip


class Lightning(nn.Module):
    """As LightningModule with the network as `self.model` and a loss with weights."""

    def __init__(self, network: nn.Module, *, loss: bool = False) -> None:
        super().__init__()
        self.model = network
        if loss:
            self.register_buffer("class_weights", torch.ones(3))


class Plain(nn.Module):
    """A network of a few layers, one of them called like a wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
        self.net = nn.Linear(3, 4)
        self.head = nn.Linear(4, 5)


def compiled(module: nn.Module) -> nn.Module:
    found: Any = torch.compile(module, backend="eager")
    return found


def parts_compiled(module: Any) -> nn.Module:
    module.encoder = compiled(module.encoder)
    module.head = nn.DataParallel(module.head)
    return module


def drawn(module: nn.Module) -> nn.Module:
    """Other numbers in every parameter."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


WRAPPINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda m: m,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "lightning": Lightning,
    "lightning, compiled": lambda m: Lightning(compiled(m)),
    "parallel, lightning": lambda m: nn.DataParallel(Lightning(m)),
    "parts": parts_compiled,
    "lightning of parts": lambda m: Lightning(parts_compiled(m)),
}


@pytest.mark.parametrize("into", WRAPPINGS)
@pytest.mark.parametrize("source", WRAPPINGS)
def test_any_wrapping_into_any(source: str, into: str) -> None:
    trained, plain = Plain(), Plain()
    drawn(trained)
    expected = {name: value.clone() for name, value in trained.state_dict().items()}
    report = zoo.load_weights(WRAPPINGS[into](plain), WRAPPINGS[source](trained).state_dict())
    assert (report.share, len(report.loaded), report.unexpected) == (1, len(expected), [])
    own = [value for _, value in sorted(plain.state_dict().items())]
    assert all(map(torch.equal, own, [value for _, value in sorted(expected.items())]))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_at_every_entrance(prefix: str, tiny_recipe: Path, tmp_path: Path) -> None:
    model = zoo.create(tiny_recipe)
    drawn(model)
    state = {prefix + name: value for name, value in model.state_dict().items()}
    path = tmp_path / "checkpoint"
    torch.save({"state_dict": state, "hyper_parameters": {"lr": 0.1}}, path)
    made = zoo.create(tiny_recipe, pretrained=path).state_dict()
    assert all(torch.equal(value, made[name]) for name, value in model.state_dict().items())
    nested: Any = {"model": state}
    assert zoo.load_weights(compiled(zoo.create(tiny_recipe)), nested).share == 1


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_networks_whose_own_names_begin_so(prefix: str) -> None:
    """MONAI's UNet is `model.0…`; an attached model has its network as `network`, and a head beside it."""
    unet = UNet(3, 1, 2, (4, 8), (2,))
    attached = zoo.attach_head(
        SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,)), "pointwise", num_classes=2
    )
    both = nn.ModuleDict({"model": nn.Linear(2, 2), "net": nn.Linear(2, 2), "weight": nn.Linear(2, 2)})
    for network in (unet, attached, both):
        drawn(network)
        expected = {name: value.clone() for name, value in network.state_dict().items()}
        assert len(expected) >= 6
        state = {prefix + name: value for name, value in expected.items()}
        drawn(network)
        assert zoo.load_weights(network, state).share == 1
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in expected.items())


def test_a_finished_network_into_the_attached_one() -> None:
    """What was taken out has no place there, and is no sign of another network; its head is not the attached head."""
    whole = SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,))
    drawn(whole)
    state: dict[str, Tensor] = {name: value.clone() for name, value in whole.state_dict().items()}
    attached = zoo.attach_head(
        SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,)), "pointwise", num_classes=2
    )
    report = zoo.load_weights(attached, {f"module.{name}": value for name, value in state.items()}, strict=False)
    assert {name.split(".")[0] for name in report.missing} == {"head"}
    assert report.unexpected == ["network.conv_final.2.conv.weight", "network.conv_final.2.conv.bias"]
    own = attached.state_dict()
    assert all(torch.equal(value, own[f"network.{n}"]) for n, value in state.items() if "conv_final.2" not in n)


def test_the_rest_of_a_training_module_is_told(tiny_recipe: Path) -> None:
    model = zoo.create(tiny_recipe)
    state = Lightning(model, loss=True).state_dict()
    with pytest.raises(CheckpointError, match="'class_weights' has no place"):
        zoo.load_weights(zoo.create(tiny_recipe), state)
    report = zoo.load_weights(zoo.create(tiny_recipe), state, strict=False)
    assert (report.unexpected, report.share) == (["class_weights"], 1)
    assert zoo.load_weights(Lightning(zoo.create(tiny_recipe), loss=True), state).share == 1


def test_which_network_is_meant_must_be_clear() -> None:
    state = Plain().state_dict()
    twice = {f"student.{n}": v for n, v in state.items()} | {f"model.{n}": v for n, v in state.items()}
    with pytest.raises(CheckpointError, match=r"'student\.encoder\.0\.weight' has no place"):
        zoo.load_weights(Plain(), twice)
    twice = {f"module.ema.{n}": v for n, v in state.items()} | {f"model.{n}": v for n, v in state.items()}
    assert zoo.load_weights(Plain(), twice, strict=False).share == 1
    for other in ("net.", "module."):
        twice = {f"{other}{n}": v for n, v in state.items()} | {f"model.{n}": v for n, v in state.items()}
        for strict in (True, False):
            with pytest.raises(CheckpointError, match=r"a second time, under 'model\.'"):
                zoo.load_weights(Plain(), twice, strict=strict)


def test_labels_are_checked_through_wrappers(tiny_recipe: Path, tmp_path: Path) -> None:
    from tests.weights.test_load import save, tiny

    path = save(tiny(tiny_recipe), tmp_path / "own.safetensors", ["background", "left", "right"])
    for wrap in ("compiled", "parallel", "lightning, compiled"):
        swapped = tiny(tiny_recipe, labels={"background": 0, "right": 1, "left": 2})
        with pytest.raises(CheckpointError, match="trained for the labels background, left, right"):
            zoo.load_weights(WRAPPINGS[wrap](swapped), path)
        report = zoo.load_weights(WRAPPINGS[wrap](swapped), path, strict=False)
        assert set(report.adapted.values()) == {"classes 3 → 3, 3 by name"}
