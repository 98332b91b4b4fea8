"""Names: wildcards, suggestions, duplicates, and cards that agree with their code."""

from __future__ import annotations

from typing import Literal

import pytest
from torch import Tensor

import maskmed_zoo as zoo
from maskmed_zoo import registry
from maskmed_zoo.contracts import ComponentConfig, FeatureSpec, Neck
from maskmed_zoo.errors import JointError, RegistryError
from maskmed_zoo.settings import Spacing3


class TwiceConfig(ComponentConfig):
    kind: Literal["twice"] = "twice"


class Twice(Neck):
    """Levels times two."""

    Config = TwiceConfig

    def __init__(
        self, *, in_spec: FeatureSpec, config: TwiceConfig | None = None, spacing: Spacing3 = (1.0, 1.0, 1.0)
    ) -> None:
        super().__init__()
        self.out_spec = in_spec

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [2 * x for x in levels]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of its own, so that what a test registers is gone afterwards."""
    new = registry._Registry()
    monkeypatch.setattr(registry, "_REGISTRY", new)


def test_listing() -> None:
    assert zoo.list("maskmed_*", kind="model") == [n for n in zoo.list(kind="model") if n.startswith("maskmed_")]
    assert len(zoo.list("maskmed_*")) >= 7
    assert zoo.list("nothing*") == []
    assert set(zoo.list(kind="head")) >= {"pointwise", "masked_query"}
    with pytest.raises(RegistryError, match="did you mean 'head'"):
        zoo.list(kind="heads")


def test_describe_gives_the_card() -> None:
    facts = zoo.describe("fsad")
    assert facts["kind"] == "neck"
    assert facts["target"] == "maskmed_zoo.necks.fsad:FSADNeck"
    with pytest.raises(RegistryError, match="no component or model named 'fsadd'; did you mean 'fsad'"):
        zoo.describe("fsadd")


def test_kind_is_checked() -> None:
    with pytest.raises(RegistryError, match=r"no head named 'fsad' \('fsad' is a neck\)"):
        registry.component("fsad", "head")


@pytest.mark.usefixtures("fresh")
def test_register_at_run_time() -> None:
    zoo.register("twice", kind="neck", summary="levels times two")(Twice)
    assert "twice" in zoo.list(kind="neck")
    model = zoo.create("maskmed_hippocampus_cpu", model__neck__kind="twice")
    assert isinstance(model.neck, Twice)
    with pytest.raises(RegistryError, match="registered twice"):
        zoo.register("twice", kind="neck")(Twice)


@pytest.mark.usefixtures("fresh")
def test_a_neck_without_out_spec_is_named() -> None:
    class Forgetful(Twice):
        def __init__(self, **context: object) -> None:
            super(Neck, self).__init__()

    zoo.register("twice", kind="neck")(Forgetful)
    with pytest.raises(JointError, match="neck 'twice' sets no out_spec"):
        zoo.create("maskmed_hippocampus_cpu", model__neck__kind="twice")


@pytest.mark.usefixtures("fresh")
def test_register_refuses_what_does_not_fit() -> None:
    with pytest.raises(RegistryError, match="did you mean 'neck'"):
        zoo.register("twice", kind="nek")
    with pytest.raises(RegistryError, match=r"subclass of maskmed_zoo\.contracts\.Head"):
        zoo.register("twice", kind="head")(Twice)
    with pytest.raises(RegistryError, match="must have the field kind"):
        zoo.register("thrice", kind="neck")(Twice)

    class NamedConfig(ComponentConfig):
        kind: Literal["pointwise"] = "pointwise"

    class Named(Twice):
        Config = NamedConfig

    with pytest.raises(RegistryError, match="names are unique across kinds"):
        zoo.register("pointwise", kind="neck")(Named)


def test_every_model_card_names_a_recipe_of_that_name() -> None:
    cards = registry.find(kind="model")
    assert len(cards) >= 13
    for card in cards:
        assert zoo.load_recipe(card.name).name == card.name
    paths = registry.data_folder("recipes").glob("*/*.yaml")
    stems = {path.stem for path in paths if path.parent.name != "ablations"}
    assert stems == {card.name for card in cards}, "a recipe without a card cannot be found by name"


def test_broken_card_is_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "necks").mkdir()
    (tmp_path / "necks" / "bad.yaml").write_text("summary: x\ntarget: a:b\ncolour: red\n")
    monkeypatch.setattr(registry, "data_folder", lambda name: tmp_path)
    broken = registry._Registry()
    for _ in range(2):  # said every time, not once
        with pytest.raises(RegistryError, match=r"bad\.yaml: a neck card needs"):
            broken.cards  # noqa: B018
    (tmp_path / "necks" / "bad.yaml").write_text("summary: x\ntarget: no.such:Thing\n")
    with pytest.raises(RegistryError, match="cannot be imported"):
        registry._Registry().load("bad")
