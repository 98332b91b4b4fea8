"""Whole plans of nnU-Net's own networks against its planner: a part of docs/benchmarks/plan.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from maskmed_zoo.planning.nnunet import reference_of
from maskmed_zoo.recipe import load_recipe

SCRIPT = Path(__file__).resolve().parents[2] / "docs/benchmarks/plan.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("data", "network", "gib"),
    [
        ("thin slab", "plain", 8),
        ("tiny volumes", "plain", 11),
        ("4 channels", "plain", 6),
        ("5 mm slices", "ResEnc M", 8),
        ("thin slab", "ResEnc L", 24),
        ("tiny volumes", "ResEnc XL", 40),
    ],
)
def test_plan_is_nnunets(script: ModuleType, data: str, network: str, gib: float) -> None:
    planner, recipe, _ = script.PLANNERS[network]
    facts = script.made_up()[data]
    assert script.ours(facts, recipe, gib) == script.nnunets(facts, planner, gib)


def test_a_turned_data_set_has_the_same_plan_turned(script: ModuleType) -> None:
    """nnU-Net turns the thick axis to the front; so does the plan, and back."""
    facts = script.made_up()["5 mm slices"]
    turned = script.Facts([s[::-1] for s in facts.spacings], [s[::-1] for s in facts.shapes], 1, facts.labels)
    straight, found = script.ours(facts, "pointwise_amos", 8), script.ours(turned, "pointwise_amos", 8)
    assert found["strides"] == [step[::-1] for step in straight["strides"]]
    assert sorted(found["patch"]) == sorted(straight["patch"])
    assert found["patch"][2] == straight["patch"][0]


def test_only_its_own_networks_are_measured_as_nnunet_does() -> None:
    own = {"pointwise_amos": ("nnU-Net", "nnU-Net", "nnU-Net"), "resenc_amos": ("ResEnc M", "ResEnc L", "ResEnc XL")}
    for name, wanted in own.items():
        found = [reference_of(load_recipe(name).model, gib) for gib in (8, 24, 40)]
        assert tuple(reference.name for reference in found if reference) == wanted
    changed = [
        ("maskmed_amos", {}),
        ("swin_unetr_amos", {}),
        ("pointwise_amos", {"model.encoder.blocks": 3}),
        ("pointwise_amos", {"model.decoder.width": 2.0}),
        ("pointwise_amos", {"model.neck": {"kind": "fsad"}}),
        ("pointwise_amos", {"model.encoder.channels": [16, 32, 64, 128, 160, 160]}),
        ("resenc_amos", {"model.encoder.blocks": [1, 3, 4, 6, 6, 5]}),
    ]
    assert [reference_of(load_recipe(name, settings).model, 8) for name, settings in changed] == [None] * len(changed)
