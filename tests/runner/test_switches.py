"""Switches of a step: the same numbers with each of them, one graph for all steps, and one line where none can be."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskmed_zoo.errors import JointError, UserError
from maskmed_zoo.layers.deformable import DeformableBlock
from maskmed_zoo.layers.transformer import MultiHeadAttention, TransformerConfig
from maskmed_zoo.model import PARTS
from maskmed_zoo.planning.footprint import StepMemory
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.recipe.difference import what_trains
from maskmed_zoo.runner import switches
from maskmed_zoo.runner.trainer import Trainer

CPU = torch.device("cpu")
DROPOUT = {"model.neck.dropout": 0.2, "model.head.dropout": 0.2}
SMALLEST = {
    "model.encoder.channels": [2, 4],
    "model.neck": {"kind": "skip"},
    "model.head": {"kind": "pointwise"},
    "model.loss": {"kind": "ce_dice"},
}


def batch(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 8, 16, 16), generator=generator)
    image = torch.randn(2, 1, 8, 16, 16, generator=generator) + labels[:, None]
    return {"image": image.to(dtype), "labels": labels}


def validated(trainer: Trainer) -> float:
    return trainer.validate([batch() | {"annotated": torch.ones(2, 3).bool()}]).dice  # pyright: ignore[reportArgumentType]


def gradients(tiny_recipe: Path, settings: dict[str, Any], dtype: torch.dtype) -> tuple[Trainer, dict[str, Tensor]]:
    """Of the first batch, by name of a parameter."""
    trainer = Trainer(load_recipe(tiny_recipe, settings), CPU)
    trainer.model.to(dtype)
    trainer.gradients(**batch(dtype))
    return trainer, {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.fixture
def aot(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A backend that traces forward and backward pass and needs no compiler; nothing compiled before or after."""
    monkeypatch.setattr(switches, "BACKEND", "aot_eager")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("parts", [*((part,) for part in PARTS), PARTS])
def test_checkpointing_gives_the_same_gradients_bit_for_bit(tiny_recipe: Path, parts: tuple[str, ...]) -> None:
    _, due = gradients(tiny_recipe, DROPOUT, torch.float64)
    trainer, found = gradients(tiny_recipe, DROPOUT | {"train.checkpointing": parts}, torch.float64)
    assert due.keys() == found.keys() == dict(trainer.model.named_parameters()).keys()
    assert [name for name, grad in found.items() if not torch.equal(grad, due[name])] == []


def test_checkpointed_parts_run_twice_in_a_step_and_once_elsewhere(tiny_recipe: Path) -> None:
    trainer = Trainer(load_recipe(tiny_recipe, {"train.checkpointing": PARTS, "train.freeze": ["encoder"]}), CPU)
    runs: dict[str, int] = dict.fromkeys(PARTS, 0)

    def count(name: str) -> None:
        runs[name] += 1

    for name, part in trainer.model.parts().items():
        part.register_forward_pre_hook(lambda *_, name=name: count(name))
    trainer.step(**batch())
    assert runs == {"encoder": 1, "neck": 2, "decoder": 2, "head": 2}, "a frozen encoder has no backward pass"
    validated(trainer)
    assert runs == {"encoder": 2, "neck": 3, "decoder": 3, "head": 3}


def test_plans_count_on_checkpointing(tiny_recipe: Path) -> None:
    def needed(*parts: str) -> int:
        recipe = load_recipe(tiny_recipe, {"train.checkpointing": parts})
        with torch.device("meta"):
            model = Trainer(recipe, torch.device("meta")).model
        return StepMemory(model, recipe, narrow=False).bytes((32, 64, 64), 1)

    assert needed(*PARTS) < 0.85 * needed()


def test_batch_norm_is_not_checkpointed(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, {"train.checkpointing": ["encoder"]})
    model = Trainer(recipe, CPU).model
    model.encoder.add_module("norm", nn.BatchNorm3d(4))
    with pytest.raises(JointError, match=r"the encoder has batch norm \('norm'\)"):
        switches.switch_on(model, recipe.train, CPU)
    model.freeze(["encoder"])
    switches.switch_on(model, recipe.train, CPU)


def test_channels_last_leaves_what_has_no_such_order(tiny_recipe: Path) -> None:
    """A scale of each channel has four axes in `ux_net`."""
    recipe = load_recipe(tiny_recipe, {"train.channels_last": True})
    model = Trainer(recipe, CPU).model
    model.encoder.register_parameter("scale", nn.Parameter(torch.ones(4, 1, 1, 1)))
    switches.switch_on(model, recipe.train, CPU)


@pytest.mark.parametrize("encoder", ["plain_conv", "residual"])
def test_channels_last_gives_the_same_gradients(tiny_recipe: Path, encoder: str) -> None:
    settings = {"model.encoder": {"kind": encoder, "channels": [4, 8, 8], "blocks": 1}}
    _, due = gradients(tiny_recipe, settings, torch.float64)
    trainer, found = gradients(tiny_recipe, settings | {"train.channels_last": True}, torch.float32)
    convolutions = [m.weight for m in trainer.model.modules() if isinstance(m, nn.Conv3d)]
    assert convolutions
    assert all(w.is_contiguous(memory_format=torch.channels_last_3d) for w in convolutions)
    largest = max(float(grad.abs().max()) for grad in due.values())
    for name, grad in found.items():
        torch.testing.assert_close(grad.double(), due[name], rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_run_goes_on_with_the_other_order_in_memory(tiny_recipe: Path, kind: str) -> None:
    """The moments lie in memory as the weights do, else a fused optimizer would take them for each other's."""
    settings = {"train.optimizer.kind": kind, "train.optimizer.warmup_iterations": 0}
    plain, last = (
        Trainer(load_recipe(tiny_recipe, settings | {"train.channels_last": is_last}), CPU) for is_last in (False, True)
    )
    for _ in range(2):
        plain.step(**batch())
    last.load_state(deepcopy(plain.state()))
    for trainer in (plain, last):
        trainer.step(**batch())
    for a, b in zip(plain.model.parameters(), last.model.parameters(), strict=True):
        if a.ndim == 5:  # the gradient of a bias before a norm is rounding alone
            torch.testing.assert_close(b, a, rtol=1e-3, atol=2e-4)


@pytest.mark.usefixtures("aot")
def test_compiled_once_without_a_break(tiny_recipe: Path) -> None:
    """With everything else that a step may have."""
    from torch._dynamo.utils import counters

    settings = {
        "train.amp": "bf16", "train.accumulate": 2, "train.freeze": ["encoder"], "train.channels_last": True,
        "train.checkpointing": PARTS,
    }  # fmt: skip
    plain = Trainer(load_recipe(tiny_recipe, settings), CPU)
    compiled = Trainer(load_recipe(tiny_recipe, settings | {"train.compile": True}), CPU)
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
    counters.clear()
    for _ in range(2):
        due = plain.step(**batch())
        assert compiled.step(**batch())["loss"] == pytest.approx(due["loss"], rel=2e-2)
        assert validated(compiled) == pytest.approx(validated(plain), abs=0.02)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2, "one of training, one of validation"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_runs_go_on_bit_for_bit(tiny_recipe: Path) -> None:
    """By the compiler itself; the second trainer compiles anew, as another process would."""
    recipe = load_recipe(tiny_recipe, SMALLEST | {"train.compile": True})
    trainers = [Trainer(recipe, CPU) for _ in range(2)]
    plain = Trainer(load_recipe(tiny_recipe, SMALLEST), CPU)
    trainers[0].step(**batch())
    plain.step(**batch())
    trainers[1].load_state(deepcopy(trainers[0].state()))
    due = plain.step(**batch())
    losses = [trainer.step(**batch())["loss"] for trainer in trainers]
    assert losses[0] == losses[1] == pytest.approx(due["loss"], rel=1e-4)
    for a, b in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
        assert torch.equal(a, b)


def test_no_compiler_is_told_in_a_line(tiny_recipe: Path) -> None:
    import torch._inductor.config as inductor

    torch.compiler.reset()
    recipe = load_recipe(tiny_recipe, {"train.compile": True})
    missing = inductor.patch({"cpp.cxx": (None, "no_such_compiler"), "fx_graph_cache": False})
    with missing, pytest.raises(UserError, match=r"train\.compile: .*no_such_compiler.*; install a C\+\+ ") as caught:
        Trainer(recipe, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("aot")
def test_full_precision_stays_in_compiled_layers() -> None:
    """Attention and the places that are sampled, under autocast, as exact as without it."""
    torch.manual_seed(0)
    attention = MultiHeadAttention(16, 2)
    block = DeformableBlock((8,), TransformerConfig(width=16, attention_heads=2), 2)
    with torch.no_grad():
        for parameter in (*attention.parameters(), *block.parameters()):
            parameter.normal_()
    query, centers = torch.randn(1, 6, 16), torch.rand(6, 3)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return attention(x, x, x), *block.sampling(x, centers, [(4, 4, 4)])

    compiled, due = torch.compile(run, backend="aot_eager", fullgraph=True), run(query)
    with torch.autocast("cpu", torch.bfloat16):
        found = compiled(query)
    for a, b in zip(found, due, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_bfloat16_trains_on_the_cpu(tiny_recipe: Path) -> None:
    trainer = Trainer(load_recipe(tiny_recipe, {"train.amp": "bf16", "train.optimizer.warmup_iterations": 0}), CPU)
    losses = [trainer.step(**batch())["loss"] for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_cudnn_times_its_algorithms_while_training_alone(tiny_recipe: Path) -> None:
    config, before = load_recipe(tiny_recipe, {"train.cudnn_benchmark": True}).train, torch.backends.cudnn.benchmark
    for device, due in (("cuda", True), ("cpu", before)):
        with suppress(KeyError), switches.cudnn_benchmark(config, torch.device(device)):
            assert torch.backends.cudnn.benchmark == due
            raise KeyError
        assert torch.backends.cudnn.benchmark == before


def test_switches_make_no_other_training(tiny_recipe: Path) -> None:
    """So that a run goes on with others of them, and an ablation does not train a row again."""
    switched = {
        "train.checkpointing": ["encoder"], "train.compile": True, "train.channels_last": True,
        "train.cudnn_benchmark": True, "train.optimizer.fused": "off",
    }  # fmt: skip
    assert what_trains(load_recipe(tiny_recipe, switched)) == what_trains(load_recipe(tiny_recipe))
