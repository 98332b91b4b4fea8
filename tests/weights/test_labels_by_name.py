"""Another number of labels, other names, another order: rows go by name, and what is fresh is counted as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import maskmed_zoo as zoo
from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.model import SegmentationModel
from tests.weights.test_load import refusal, save
from tests.weights.test_wrappers import drawn

HEADS: dict[str, dict[str, Any]] = {
    "pointwise": {"model.loss": {"kind": "ce_dice"}},
    "learned_class": {"model.loss": {"kind": "ce_dice"}},
    "attention_class": {"model.loss": {"kind": "ce_dice"}},
    "attention_mask_class": {"model.loss": {"kind": "ce_dice"}},
    "masked_query": {},
    "masked_query, per stage": {"model.head.queries": "per_stage"},
    "masked_query, two each": {"model.head.queries_per_class": 2},
    "learned_class, 5 queries": {"model.loss": {"kind": "ce_dice"}, "model.head.num_queries": 5},
    "masked_query, 4 queries": {"model.head.num_queries": 4},
}
OLD = ("background", "left", "right")


def made(recipe: Path, head: str, *names: str) -> SegmentationModel:
    settings: dict[str, Any] = {"data.labels": {name: value for value, name in enumerate(names)}}
    kind = head.split(",", maxsplit=1)[0]
    if kind != "masked_query":
        settings |= {"model.head": {"kind": kind}}
    model = zoo.create(zoo.load_recipe(recipe, settings | HEADS[head]))
    drawn(model)
    return model.eval()


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_the_same_labels_in_another_order_give_the_same_answer(head: str, tiny_recipe: Path, tmp_path: Path) -> None:
    trained = made(tiny_recipe, head, *OLD)
    path, image = save(trained, tmp_path / "old.safetensors", list(OLD)), torch.randn(1, 1, 8, 16, 16)
    swapped = made(tiny_recipe, head, "background", "right", "left")
    message = refusal(swapped, path)
    assert "name and order data.labels as in the file, or pass strict=False to match their rows by name" in message
    report = zoo.load_weights(swapped, path, strict=False)
    assert set(report.adapted.values()) == {"classes 3 → 3, 3 by name"}
    assert (report.share, report.missing, report.unexpected) == (1, {}, [])
    # In float64: among weights as large as these, float32 rounds logits by more than is looked for here.
    found, due = (model.double().predict(image.double()) for model in (swapped, trained))
    torch.testing.assert_close(found[:, [0, 2, 1]], due, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "new", [("background", "left", "tumor"), ("background", "right"), ("background", "a", "b", "c")]
)
@pytest.mark.parametrize("head", ["pointwise", "learned_class", "masked_query", "masked_query, 4 queries"])
def test_only_rows_of_the_file_count(head: str, new: tuple[str, ...], tiny_recipe: Path, tmp_path: Path) -> None:
    """Nothing of the fresh network is left, and `share` counts exactly the rows that were not made up."""
    path = save(made(tiny_recipe, head, *OLD), tmp_path / "old.safetensors", list(OLD))
    model = made(tiny_recipe, head, *new)
    old, before = load_file(path), {name: value.clone() for name, value in model.state_dict().items()}
    assert "strict=False" in refusal(model, path)
    report = zoo.load_weights(model, path, strict=False)
    known = sum(name in OLD for name in new)
    hows = {how.partition(";")[0] for how in report.adapted.values()}
    assert hows == {f"classes 3 → {len(new)}, {known} by name"}
    after = model.state_dict()
    assert not any((after[name] == value).any() for name, value in before.items())
    taken = sum(int(torch.isin(value, old[name]).sum()) for name, value in after.items())
    copies = max(0, len(new) - 3)
    if head == "learned_class":
        copies *= known * sum(".classes." in name for name in before)
    else:
        copies *= before["head.decoder.queries.0"].shape[1] if head == "masked_query" else 0
    total = sum(value.numel() for value in before.values())
    assert 0 < taken <= total
    assert report.share == pytest.approx((taken - copies) / total, abs=1e-9)


@pytest.mark.parametrize(
    "head", [head for head in HEADS if head not in ("attention_mask_class", "masked_query, 4 queries")]
)
@torch.no_grad()
def test_new_labels_take_nothing_from_those_of_the_file(head: str, tiny_recipe: Path, tmp_path: Path) -> None:
    """Further labels and their queries leave every voxel to the label that it had, at every stage.

    But for what copies of queries change in the attention of the others, of which there is none in the dense heads
    without it, and which is taken out here.
    """
    trained = made(tiny_recipe, head, *OLD)
    path, image = save(trained, tmp_path / "old.safetensors", list(OLD)), torch.randn(1, 1, 8, 16, 16)
    model = made(tiny_recipe, head, "background", "a", "right", "b", "left")
    zoo.load_weights(model, path, strict=False)
    for each in (model, trained):
        for name, value in each.named_parameters():
            if ".self_attention." in name:
                value.zero_()
    found, due = (each.double()(image.double()) for each in (model, trained))
    place = torch.tensor([0, 4, 2])
    for new, old in zip(found.stages, due.stages, strict=True):
        if old.logits is not None:
            logits = new.logits
            torch.testing.assert_close(logits.softmax(1).argmax(1), place[old.logits.argmax(1)])
            torch.testing.assert_close(logits[:, place], old.logits, rtol=1e-6, atol=1e-6)
        else:
            rows = torch.arange(6) if "two each" in head else place
            logits = new.class_logits[:, rows]
            torch.testing.assert_close(logits[..., [0, 4, 2, 5]], old.class_logits, rtol=1e-6, atol=1e-6)
            assert bool((logits[..., [1, 3]].amax(-1) <= old.class_logits.amax(-1) + 1e-9).all())
            torch.testing.assert_close(new.masks[:, rows], old.masks, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_as_many_copies_of_every_query_change_nothing(tiny_recipe: Path, tmp_path: Path) -> None:
    """Twelve queries of six do not disturb one another's attention; of eight, none is a copy of the background's."""
    trained = made(tiny_recipe, "masked_query", *OLD)
    path, image = save(trained, tmp_path / "old.safetensors", list(OLD)), torch.randn(1, 1, 8, 16, 16)
    names = {name: value for value, name in enumerate(("background", "a", "right", "b", "left"))}
    twice = zoo.create(zoo.load_recipe(tiny_recipe, {"data.labels": names, "model.head.num_queries": 6})).eval()
    zoo.load_weights(twice, path, strict=False)
    for new, old in zip(*(each.double()(image.double()).stages for each in (twice, trained)), strict=True):
        for copy in (new.masks[:, :3], new.masks[:, 3:]):
            torch.testing.assert_close(copy, old.masks, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(new.class_logits[:, :3, [0, 4, 2, 5]], old.class_logits, rtol=1e-6, atol=1e-6)
    five, queries = made(tiny_recipe, "masked_query", *names), trained.head.get_parameter("decoder.queries.0")
    zoo.load_weights(five, path, strict=False)
    found = five.head.get_parameter("decoder.queries.0").double()
    torch.testing.assert_close(found, queries[[0, 1, 2, 2, 1]])


def test_queries_of_new_labels_learn(tiny_recipe: Path, tmp_path: Path) -> None:
    """Their masks begin at 0, and have a gradient as their classes do not; from the next step on so have these."""
    path = save(made(tiny_recipe, "learned_class", *OLD), tmp_path / "old.safetensors", list(OLD))
    model = made(tiny_recipe, "learned_class", *OLD, "a", "b")
    zoo.load_weights(model, path, strict=False)
    optimizer = torch.optim.SGD(model.head.parameters(), 0.01)
    for learns in (("masks",), ("masks", "classes")):
        optimizer.zero_grad()
        stages = model(torch.randn(1, 1, 8, 16, 16)).stages
        torch.stack([-stage.logits.log_softmax(1)[:, 3:].mean() for stage in stages]).sum().backward()
        for name, value in model.head.named_parameters():
            new = value.grad[3:] if name.endswith("weight") or "classes" in name else value.grad[3:, None]
            assert bool((new.flatten(1) != 0).any(1).all()) == (name.split(".")[0] in learns), name
        optimizer.step()


def test_a_network_that_does_not_say_its_rows_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    path = save(made(tiny_recipe, "pointwise", *OLD), tmp_path / "old.safetensors", list(OLD))
    found = made(tiny_recipe, "pointwise", "background", "right", "left")
    bare = SegmentationModel(
        **found.parts(), in_channels=1, num_classes=3, class_names=found.class_names  # type: ignore[arg-type]
    )  # fmt: skip
    assert bare.label_axes() is None
    for strict in (True, False):
        message = refusal(bare, path, strict=strict)
        assert message.endswith("name and order data.labels as in the file")


def test_more_of_the_body_than_the_network_has(tiny_recipe: Path) -> None:
    """The weights of a deeper network fill every parameter of a shallow one, and are not its own."""
    deep = made(tiny_recipe, "pointwise", *OLD)
    state = dict(deep.state_dict())
    state["encoder.levels.9.0.conv.weight"] = torch.zeros(3)
    model = made(tiny_recipe, "pointwise", *OLD)
    assert "'encoder.levels.9.0.conv.weight' has no place in the network" in refusal(model, state, strict=False)
    del state["encoder.levels.9.0.conv.weight"]
    state["head.other.weight"] = state["projector.0.weight"] = torch.zeros(3)
    assert zoo.load_weights(model, state, strict=False).share == 1
    numbered = torch.nn.ModuleDict({"layer1": torch.nn.Linear(2, 2), "fc": torch.nn.Linear(2, 2)})
    further = dict(numbered.state_dict()) | {"layer2.weight": torch.zeros(2, 2)}
    with pytest.raises(
        CheckpointError, match=r"'layer2.weight' has no place in the network, and it is none of a head's"
    ):
        zoo.load_weights(numbered, further, strict=False)
    kept = zoo.load_weights(
        numbered, further, keys=lambda state, _: {n: v for n, v in state.items() if "layer2" not in n}
    )
    assert kept.share == 1
