"""Training and scoring on two data sets, one of them partly annotated, that number their labels differently."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics.meandice import compute_dice

from maskmed_zoo.data.formats import read_labels
from maskmed_zoo.errors import CheckpointError, DataError
from maskmed_zoo.evaluation import folders
from maskmed_zoo.evaluation.case import LabelMapPair, ScoredCase, score_case
from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.runner import evaluate as runner_evaluate
from maskmed_zoo.runner.evaluate import evaluate
from maskmed_zoo.runner.predict import predict
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.train import train
from maskmed_zoo.runner.trainer import Trainer
from tests.conftest import make_dataset

MERGED = {"background": 0, "left": 1, "right": 2, "third": 3}
QUICK = ["data.labels=null", "train.epochs=1", "train.iterations_per_epoch=1"]


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe, QUICK)


@pytest.fixture
def run(recipe: Recipe, dataset: Path, partial: Path, tmp_path: Path) -> RunFolder:
    return train(recipe, data=[dataset, partial], out=tmp_path / "run", device="cpu")


def test_manifest_records_every_data_set(run: RunFolder, dataset: Path, partial: Path) -> None:
    manifest = json.loads(run.manifest_file.read_text())
    assert run.recipe().data.labels == MERGED
    assert manifest["dataset"] == "Boxes + Partial"
    assert sorted(manifest["training"]) == ["case_01", "case_02", "case_03", "part_01", "part_02"]
    assert manifest["validation"] == ["case_00", "part_00"]
    assert [record["path"] for record in manifest["data"]] == [str(dataset), str(partial)]
    assert manifest["data"][1]["annotated"]["part_01"] == ["right", "third"]
    assert manifest["data"][1]["labels"] == {"background": 0, "right": 1, "third": 2, "left": 3}
    folders = [path.name for path in (run.path.parent / ".maskmed_cache").iterdir()]
    assert sorted("facts" in name for name in folders) == [False, False, True, True]


def test_a_case_is_out_of_memory_before_the_next_is_read(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = list[weakref.ref[LabelMapPair]]()

    def scoring(pair: LabelMapPair, wanted: Sequence[Metric]) -> ScoredCase:
        pairs.append(weakref.ref(pair))
        return score_case(pair, wanted)

    def reading(function: Callable[..., Any]) -> Callable[..., Any]:
        def read(*arguments: Any) -> Any:
            gc.collect()
            assert not any(pair() for pair in pairs)
            return function(*arguments)

        return read

    monkeypatch.setattr(runner_evaluate, "score_case", scoring)
    monkeypatch.setattr(runner_evaluate, "load_case", reading(runner_evaluate.load_case))
    evaluate(run, device="cpu")
    assert len(pairs) == 2
    monkeypatch.setattr(folders, "score_case", scoring)
    monkeypatch.setattr(folders, "read_labels", reading(folders.read_labels))
    evaluate_folders(run.predictions, run.predictions, MERGED)
    assert len(pairs) == 4


def test_scores_are_of_the_labels_looked_for(run: RunFolder, partial: Path) -> None:
    scores = evaluate(run, device="cpu")
    assert scores["dataset"] == "Boxes + Partial"
    complete, some = scores["cases"]
    assert (complete["case"], complete["unannotated"]) == ("case_00", ["third"])
    assert (some["case"], some["unannotated"]) == ("part_00", ["third"])
    nowhere = {"mean": None, "std": None, "n": 0, "absent": 0, "missed": 0, "false": 0, "unannotated": 2}
    assert scores["labels"]["third"].items() >= nowhere.items()
    assert (scores["unannotated"], scores["absent"]) == (2, 0)
    predicted = read_labels(run.predictions / "part_00.nii.gz").array
    reference = read_labels(partial / "labelsTr" / "part_00.nii.gz").array
    for name, own in (("right", 1), ("left", 3)):
        pair = [torch.from_numpy(a)[None, None].float() for a in (predicted == MERGED[name], reference == own)]
        assert some["dice"][name] == pytest.approx(float(compute_dice(*pair, include_background=True)), abs=1e-6)
        assert reference[reference == own].size


def test_folders_are_compared_by_the_names_of_labels(
    tiny_recipe: Path, dataset: Path, partial: Path, tmp_path: Path
) -> None:
    """The run numbers right, third and left 2, 3, 1, the data set 1, 2, 3; it learns until it finds one of them."""
    learning = [*QUICK, "train.iterations_per_epoch=30", "train.optimizer.lr=1e-2", "train.validation_iterations=0"]
    recipe = load_recipe(tiny_recipe, learning)
    run = train(recipe, data=[dataset, partial], out=tmp_path / "run", device="cpu")
    scores = {case["case"]: case["dice"] for case in evaluate(run, device="cpu")["cases"]}
    assert any(scores["part_00"].values())
    predict(run, [partial / "imagesTr"], tmp_path / "predicted", device="cpu")
    for folder in (tmp_path / "predicted", run.predictions):
        references = tmp_path / f"references for {folder.name}" / "labelsTr"
        references.mkdir(parents=True)
        for name in ("part_00.nii.gz", "dataset.json", "annotated.json"):
            source = next(partial.rglob(name))
            (references / name).write_bytes(source.read_bytes())
        (case,) = evaluate_folders(folder, references)["cases"]
        assert case["dice"] == scores["part_00"]


def test_all_cases_of_a_data_set_can_train(recipe: Recipe, dataset: Path, partial: Path, tmp_path: Path) -> None:
    run = train(recipe, data=[dataset, f"{partial}@all"], out=tmp_path / "whole", device="cpu")
    manifest = run.manifest()
    assert manifest["dataset"] == "Boxes + Partial@all"
    assert manifest["validation"] == ["case_00"]
    assert {"part_00", "part_01", "part_02"} <= set(manifest["training"])
    (partial / "dataset.json").unlink()  # what does not validate is not needed any more
    assert [case["case"] for case in evaluate(run, device="cpu")["cases"]] == ["case_00"]


def test_moved_data_sets_are_given_in_their_order(run: RunFolder, dataset: Path, partial: Path) -> None:
    moved = [path.rename(path.with_name(f"moved_{path.name}")) for path in (dataset, partial)]
    with pytest.raises(DataError, match="no such folder"):
        evaluate(run, device="cpu")
    with pytest.raises(DataError, match=r"1 data sets to validate on; .* in their order: Boxes, Partial"):
        evaluate(run, data=moved[0], device="cpu")
    with pytest.raises(DataError, match="give the run's data set as it was"):
        evaluate(run, data=moved[::-1], device="cpu")
    assert len(evaluate(run, data=[str(path) for path in moved], device="cpu")["cases"]) == 2


def test_resume_refuses_changes_of_any_data_set(run: RunFolder, recipe: Recipe, dataset: Path, partial: Path) -> None:
    def again(*data: str | Path) -> None:
        train(recipe, data=data, out=run.path, device="cpu", resume=True)

    again(dataset, partial)
    with pytest.raises(CheckpointError, match=r"on dataset Boxes \+ Partial, not Boxes \+ Partial@all"):
        again(dataset, f"{partial}@all")
    with pytest.raises(CheckpointError, match=r"another recipe: data\.labels\.third was 3, now None"):
        again(dataset)
    annotated = json.loads((partial / "annotated.json").read_text())
    (partial / "annotated.json").write_text(json.dumps(annotated | {"part_02": [1, 3]}))
    with pytest.raises(CheckpointError, match="labels annotated in a case, are now others"):
        again(dataset, partial)


def test_cases_of_one_name_keep_apart(recipe: Recipe, dataset: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "Other", cases=2, seed=3)
    run = train(recipe, data=[dataset, other], out=tmp_path / "two", device="cpu")
    assert run.manifest()["validation"] == ["case_00", "Other_case_01"]
    assert [case["case"] for case in evaluate(run, device="cpu")["cases"]] == ["case_00", "Other_case_01"]
    assert {path.name for path in run.predictions.glob("*.nii.gz")} == {"case_00.nii.gz", "Other_case_01.nii.gz"}


def test_the_fingerprint_is_that_of_all_training_cases(
    run: RunFolder, recipe: Recipe, dataset: Path, tmp_path: Path
) -> None:
    alone = train(recipe, data=dataset, out=tmp_path / "alone", device="cpu")
    both, one = (each.fingerprint()[0] for each in (run, alone))
    assert both.mean != one.mean  # the second data set lacks a bright box
    assert np.isclose(both.mean, one.mean, atol=120)


def test_an_ignore_label_of_one_data_set(recipe: Recipe, dataset: Path, partial: Path, tmp_path: Path) -> None:
    description = json.loads((partial / "dataset.json").read_text())
    description["labels"]["ignore"] = 4
    (partial / "dataset.json").write_text(json.dumps(description))
    run = train(recipe, data=[partial, dataset], out=tmp_path / "run", device="cpu")
    assert run.recipe().data.labels == {"background": 0, "right": 1, "third": 2, "left": 3, "ignore": 4}
    assert set(evaluate(run, device="cpu")["labels"]) == {"right", "third", "left"}


@pytest.mark.parametrize("unannotated", ["marginalize", "background"])
def test_the_loss_is_told_what_was_looked_for(
    unannotated: str, recipe: Recipe, dataset: Path, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def step(self: Trainer, image: torch.Tensor, labels: torch.Tensor, annotated: torch.Tensor) -> dict[str, float]:
        seen.append(annotated)
        return {"loss": 0.0}

    monkeypatch.setattr(Trainer, "step", step)
    several = load_recipe(recipe, {"data.unannotated": unannotated, "train.iterations_per_epoch": 8})
    train(several, data=[dataset, f"{partial}@all"], out=dataset.parent / "told", device="cpu")
    annotated = torch.cat(seen)
    assert annotated.shape == (16, 4)
    assert annotated[:, [0, 2]].all()  # background, and right, which every case lists
    assert bool(annotated.all()) == (unannotated == "background")
