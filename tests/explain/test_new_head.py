"""A new head is one file, its explanation included: one registered here is trained, observed and explained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import maskmed_zoo as zoo
from maskmed_zoo import registry
from maskmed_zoo.contracts import FeatureSpec, Head, HeadOutput, StageOutput
from maskmed_zoo.explain.explain import explain
from maskmed_zoo.explain.observe import observe
from maskmed_zoo.layers.query_decoder import QueryConfig, QueryDecoder
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.report import canvas
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.train import train
from maskmed_zoo.settings import Spacing3
from tests.conftest import TINY, make_dataset

pytest.importorskip("matplotlib")


class LinearQueryConfig(QueryConfig):
    kind: Literal["linear_query"] = "linear_query"


class LinearQueryHead(Head):
    """Queries whose masks and classes are linear in them, of the finest stage alone."""

    Config = LinearQueryConfig
    parameter_group = "transformer"
    gives = "queries"

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        config: LinearQueryConfig | None = None,
        spacing: Spacing3 = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        config = config or LinearQueryConfig()
        self.num_queries = config.count(num_classes)
        self.out_strides = in_spec.strides[:1]
        self.decoder = QueryDecoder(
            in_spec=in_spec,
            config=config,
            num_queries=self.num_queries,
            schedule=(1, 0),
            shared=True,
            spacing=spacing,
        )
        self.embed = nn.Linear(config.width, in_spec.channels[0])
        self.classify = nn.Linear(config.width, num_classes + 1)

    def forward(self, stages: list[Tensor]) -> HeadOutput:
        queries = self.decoder.initial(stages[0].shape[0])
        for block, stage in enumerate(self.decoder.schedule):
            queries = self.decoder.step(block, queries, stages[stage])
        masks = torch.einsum("bnc,bcdhw->bndhw", self.embed(queries), stages[0])
        return HeadOutput([StageOutput(masks=masks, class_logits=self.classify(queries), queries=queries)])

    def mask_layers(self) -> Sequence[nn.Module]:
        return [self.embed]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    """A run of the new head, trained until it tells left from right, with two validation cases."""
    with pytest.MonkeyPatch.context() as patch:
        fresh = registry._Registry()
        patch.setattr(registry, "_REGISTRY", fresh)
        zoo.register("linear_query", kind="head")(LinearQueryHead)
        folder = tmp_path_factory.mktemp("new_head")
        (folder / "tiny.yaml").write_text(TINY)
        data = make_dataset(folder / "data")
        splits = [{"train": ["case_00", "case_01"], "val": ["case_02", "case_03"]}]
        (data / "splits_final.json").write_text(json.dumps(splits))
        overrides = ["model.head.kind=linear_query", "train.epochs=1", "train.iterations_per_epoch=60"]
        overrides += ["train.optimizer.lr=1e-2", "data.augmentation={kind: light, spatial_probability: 0}"]
        yield train(load_recipe(folder / "tiny.yaml", overrides), data=data, out=folder / "run", device="cpu")


@pytest.fixture(autouse=True)
def _pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are laid out, not rendered."""
    monkeypatch.setattr(canvas.Sheet, "save", lambda _, path: path)


def test_a_new_head_is_observed(run: RunFolder) -> None:
    model = zoo.create(run.recipe_file).eval()
    image = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    seen = observe(model, image)
    assert isinstance(model.head, LinearQueryHead)
    assert [block.stage_size for block in seen.attention] == [(4, 8, 8), (8, 16, 16)]
    (embedding,), (stage,) = seen.mask_embeddings, seen.output.stages
    with torch.inference_mode():
        features = model.decoder(model.neck(model.encoder(image[None])))[0]
    torch.testing.assert_close(stage.masks, torch.einsum("nc,bcdhw->bndhw", embedding, features))


def test_a_new_head_is_explained(run: RunFolder, tmp_path: Path) -> None:
    written = {path.name for path in explain(run, tmp_path, device="cpu")}
    found = json.loads((tmp_path / "explain.json").read_text(encoding="utf-8"))
    assert found["head"] == "linear_query"
    assert found["notes"] == []
    assert written >= {"class_embeddings.png", "mask_embeddings.png", "attention.png", "binding.png"}
    for case in found["cases"]:
        (stage,) = case["stages"]
        assert (len(stage["mask_embeddings"]), len(stage["mask_embeddings"][0])) == (3, 4)
        assert [sum(row) for row in stage["class_embeddings"]] == pytest.approx([1, 1, 1], abs=1e-3)
        assert [block["stage_size"] for block in case["attention"]] == [[4, 8, 8], [8, 16, 16]]
        assert all({"left", "right"} <= {q["class"] for q in block["queries"]} for block in case["attention"])
        assert {"left", "right"} <= set(case["binding"]) & set(case["matching"])


def test_a_head_that_does_not_say_what_makes_its_masks_is_named(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LinearQueryHead, "mask_layers", Head.mask_layers)
    explain(run, tmp_path, device="cpu", validation=1)
    found = json.loads((tmp_path / "explain.json").read_text(encoding="utf-8"))
    (note,) = found["notes"]
    assert note == (
        "head 'linear_query' names no layers that make its masks; to show mask embeddings, implement Head.mask_layers"
    )
    assert [stage["mask_embeddings"] for stage in found["cases"][0]["stages"]] == [None]
    assert found["cases"][0]["attention"]
