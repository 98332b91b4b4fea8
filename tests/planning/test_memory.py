"""Budgets in words, and the memory of a step against what PyTorch itself keeps in one."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
import torch

import maskmed_zoo as zoo
from maskmed_zoo.build import model_of
from maskmed_zoo.errors import ArgumentError
from maskmed_zoo.layers import conv
from maskmed_zoo.model import count_parameters
from maskmed_zoo.planning.budget import DEFAULT, budget_of, size_of
from maskmed_zoo.planning.footprint import Live, StepMemory

PATCH = (16, 32, 32)


@pytest.mark.parametrize(
    ("text", "size"),
    [("11G", 11 * 2**30), ("8GiB", 2**33), ("900M", 900 * 2**20), (" 1.5 gb ", 1.5 * 2**30), ("1t", 2**40)],
)
def test_sizes_are_read(text: str, size: float) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "11", "G", "-1G", "0G", "1e3G", "nan G", "8 Gbit", "9" * 20 + "G", "11G\n12G"])
def test_nonsense_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ArgumentError, match="memory: expected a size such as 11G") as refusal:
        size_of(text)
    assert "\n" not in str(refusal.value)


def test_budget_without_a_size() -> None:
    if not torch.cuda.is_available():
        assert (budget_of(None, "auto").bytes, budget_of(None, "auto").narrow) == (DEFAULT, False)
    assert budget_of("1G", "bf16").narrow


def test_live_counts_what_lives() -> None:
    with Live() as live:
        one = torch.zeros(1000)
        assert live.now == 4000
        two = one + 1
        view = two[10:]
        assert live.now == 8000
        del one, two
        assert live.now == 4000
        del view
    assert (live.now, live.peak) == (0, 8000)


@pytest.mark.parametrize("settings", [{}, {"model.neck.kind": "skip", "model.head.kind": "pointwise",
                                           "model.loss.kind": "ce_dice"}])  # fmt: skip
def test_activations_are_those_that_autograd_keeps(
    tiny_recipe: Path, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`saved_tensors_hooks` sees every tensor kept for the gradient in a real run, computed as on a GPU."""
    monkeypatch.setattr(conv, "is_eager_cpu", lambda _: False)
    recipe = zoo.load_recipe(tiny_recipe, settings)
    kept: dict[int, int] = {}
    model = model_of(recipe)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(torch.randn(2, 1, *PATCH))
    with torch.device("meta"):
        meta = model_of(recipe)
    _, live = StepMemory(meta, recipe, narrow=False)._run(PATCH, 2)  # pyright: ignore[reportPrivateUsage]
    assert 0.95 < live.kept / sum(kept.values()) < 1.25
    del output


def test_a_step_needs_more_for_more(tiny_recipe: Path) -> None:
    recipe = zoo.load_recipe(tiny_recipe)
    with torch.device("meta"):
        memory = StepMemory(model_of(recipe), recipe, narrow=False)
        narrow = StepMemory(model_of(recipe), recipe, narrow=True)
    one, two, three = (memory.bytes(PATCH, batch) for batch in (1, 2, 3))
    assert abs((three - two) / (two - one) - 1) < 0.1
    assert memory.bytes((32, 32, 32), 1) > 1.7 * one - 16 * count_parameters(memory.model.parameters())
    assert narrow.bytes(PATCH, 2) < two
    assert one > 4 * prod(PATCH)
