"""A recipe and its data sets: labels merged by name, and every disagreement told with what to write instead."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from maskmed_zoo.data.bind import bind
from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.labels import Labels
from maskmed_zoo.recipe import load_recipe
from tests.conftest import refusal


def bare(name: str, labels: Mapping[str, int], channels: tuple[str, ...] = ("CT",)) -> RawDataset:
    return RawDataset(Path(name), name, channels, Labels(labels), ())


def merged_labels(datasets: Sequence[RawDataset]) -> Labels:
    return Labels.merged(dataset.labels for dataset in datasets)


A = bare("A", {"background": 0, "spleen": 2, "liver": 1, "ignore": 3})
B = bare("B", {"background": 0, "kidney": 1, "liver": 2, "tumour": 3})


def test_merged_labels_by_hand() -> None:
    assert merged_labels([A, B]) == {
        "background": 0,
        "liver": 1,
        "spleen": 2,
        "kidney": 3,
        "tumour": 4,
        "ignore": 5,
    }
    assert merged_labels([B, A]) == {
        "background": 0,
        "kidney": 1,
        "liver": 2,
        "tumour": 3,
        "spleen": 4,
        "ignore": 5,
    }
    for dataset in (A, B):
        assert merged_labels([dataset]) == dataset.labels


@pytest.mark.parametrize("order", [(A, B), (B, A)])
def test_renumbering_keeps_names(order: tuple[RawDataset, RawDataset]) -> None:
    labels = merged_labels(order)
    for dataset in order:
        table = dataset.labels.renumbering(labels)
        assert {name: table[value] for name, value in dataset.labels.items()}.items() <= labels.items()


def test_open_settings_are_filled_and_stated_ones_compared(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, ["data.labels=null", "data.channels=null"])
    assert bind(recipe, A, B).data.labels == merged_labels([A, B])
    assert bind(recipe, A, B).data.channels == ("CT",)
    message = refusal(bind, load_recipe(tiny_recipe), A, B)
    assert message.startswith("A/dataset.json, B/dataset.json: labels {")
    assert "differ from the recipe's" in message
    words = shlex.split(message[message.index("--set") :])
    assert bind(load_recipe(tiny_recipe, [words[1].rstrip(",")]), A, B).data.labels == merged_labels([A, B])
    more = load_recipe(tiny_recipe, {"data.labels": merged_labels([bare("C", dict(merged_labels([B])) | {"lung": 4})])})
    assert "differ" in refusal(bind, more, B)
    other = bare("D", B.labels, ("MRI",))
    assert "D/dataset.json: channels ['MRI'], A/dataset.json has ['CT']" in refusal(bind, recipe, A, other)


def test_left_right_pairs_are_found_across_data_sets(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, {"data.labels": None, "data.mirror_axes": ["x"]})
    left, right = (bare(side, {"background": 0, f"{side}_lung": 1}) for side in ("left", "right"))
    assert bind(recipe, left).data.labels == left.labels
    assert "'left_lung' and 'right_lung' are a left/right pair" in refusal(bind, recipe, left, right)
