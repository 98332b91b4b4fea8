"""Cases whose names end as maps of objects do: each keeps its own files, and is scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from maskmed_zoo.build import model_of
from maskmed_zoo.cli.main import main
from maskmed_zoo.data.formats import read_labels
from maskmed_zoo.data.inputs import find_cases
from maskmed_zoo.data.predicted import STAMP, PredictedFolder, is_objects_file
from maskmed_zoo.errors import DataError, MemoryShortageError
from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.recipe import load_recipe
from tests.conftest import write_nifti

NAMES = ("a", "lesion", "lesion_instances")
OVERRIDES = {"model.head.kind": "pointwise", "model.loss.kind": "ce_dice", "data.normalization": "zscore"}


def predictor_of(recipe: Path, instances: str | None) -> Predictor:
    torch.manual_seed(0)
    loaded = load_recipe(recipe, OVERRIDES | {"data.instances": instances})
    return Predictor(loaded, model_of(loaded), device="cpu")


@pytest.fixture
def plain(tiny_recipe: Path) -> Predictor:
    return predictor_of(tiny_recipe, None)


@pytest.fixture
def separating(tiny_recipe: Path) -> Predictor:
    return predictor_of(tiny_recipe, "components")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng, folder = np.random.default_rng(0), tmp_path / "Dataset900_Names"
    for name in NAMES:
        write_nifti(folder / "imagesTr" / f"{name}_0000.nii.gz", rng.normal(size=(18, 16, 9)), np.diag([1, 1, 2, 1.0]))
        labels = rng.integers(0, 3, (18, 16, 9)).astype(np.uint8)
        write_nifti(folder / "labelsTr" / f"{name}.nii.gz", labels, np.diag([1, 1, 2, 1.0]))
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "left": 1, "right": 2}}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def scored(pred: Path, ref: Path) -> Sequence[str]:
    summary = evaluate_folders(pred, ref)
    assert "instances" not in summary
    return [case["case"] for case in summary["cases"]]


def scan(root: Path, name: str) -> Path:
    return root / "imagesTr" / f"{name}_0000.nii.gz"


def test_every_case_is_scored(plain: Predictor, root: Path, tmp_path: Path) -> None:
    plain.files(root / "imagesTr", tmp_path / "pred")
    assert scored(tmp_path / "pred", root / "labelsTr") == [*NAMES]
    assert not is_objects_file(tmp_path / "pred" / "lesion_instances.nii.gz")
    assert not is_objects_file(root / "labelsTr" / "lesion_instances.nii.gz")  # its image lies in imagesTr
    shutil.copytree(root / "labelsTr", tmp_path / "far")  # the predictions know it still
    assert scored(tmp_path / "pred", tmp_path / "far") == [*NAMES]
    (tmp_path / "pred" / STAMP).unlink()
    shutil.copytree(root / "labelsTr", root / "labelsTs")
    shutil.copytree(root / "imagesTr", root / "imagesTs")
    assert scored(root / "labelsTs", root / "labelsTr") == [*NAMES]  # of whoever: the images lie beside both


def test_maps_of_objects_stay_what_they_are(separating: Predictor, root: Path, tmp_path: Path) -> None:
    for path in root.glob("*/lesion_instances*"):
        path.unlink()
    pred = tmp_path / "pred"
    separating.files(root / "imagesTr", pred)
    assert is_objects_file(pred / "lesion_instances.nii.gz")
    summary = evaluate_folders(pred, root / "labelsTr")
    assert [case["case"] for case in summary["instances"]["cases"]] == ["a", "lesion"]
    assert summary["unreferenced"] == []
    separating.files(root / "imagesTr", root / "imagesTr")  # beside the images they are no images
    assert [case.identifier for case in find_cases(root / "imagesTr", 1)] == ["a", "lesion"]


def test_a_case_without_its_objects_is_one_line(separating: Predictor, root: Path, tmp_path: Path) -> None:
    separating.files(scan(root, "a"), tmp_path / "pred")
    separating.files(scan(root, "lesion"), tmp_path / "pred")
    (tmp_path / "pred" / "a_instances.nii.gz").unlink()
    (root / "labelsTr" / "lesion_instances.nii.gz").unlink()
    with pytest.raises(DataError, match=r"a_instances\.nii\.gz: no such file with objects"):
        evaluate_folders(tmp_path / "pred", root / "labelsTr")


def test_neither_case_replaces_or_removes_the_others_file(
    plain: Predictor, separating: Predictor, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plain.files(scan(root, "lesion_instances"), out)
    kept = (out / "lesion_instances.nii.gz").read_bytes()
    for _ in range(2):
        plain.files(scan(root, "lesion"), out, overwrite=True)  # has no objects, and removes none
        assert (out / "lesion_instances.nii.gz").read_bytes() == kept
    with pytest.raises(DataError, match=r"lesion_instances\.nii\.gz: made by something unknown"):
        separating.files(scan(root, "lesion"), out, overwrite=True)
    assert (out / "lesion_instances.nii.gz").read_bytes() == kept
    (out / "lesion_instances.nii.gz").unlink()
    separating.files(scan(root, "lesion"), out, overwrite=True)  # nobody's any more
    objects = (out / "lesion_instances.nii.gz").read_bytes()
    assert not PredictedFolder(out).is_label_map("lesion_instances.nii.gz")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"lesion_instances\.nii\.gz: made by something unknown"):
            plain.files(scan(root, "lesion_instances"), out, overwrite=overwrite)
    assert (out / "lesion_instances.nii.gz").read_bytes() == objects
    assert len(separating.files(scan(root, "lesion"), out, overwrite=True)) == 1  # its own again


def test_both_at_once_are_refused_where_objects_are_separated(
    separating: Predictor, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="to the same file"):
        separating.files(root / "imagesTr", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_memory_is_one_line(
    plain: Predictor, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(plain, "_run", exhausted)
    with pytest.raises(
        MemoryShortageError, match=r"a_0000\.nii\.gz: to segment it needs more memory than there is"
    ) as caught:
        plain.files(scan(root, "a"), tmp_path / "out")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(plain, "_run", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        plain.files(scan(root, "a"), tmp_path / "out")
    monkeypatch.setattr("maskmed_zoo.evaluation.folders.score_case", exhausted)
    assert main(["evaluate", "--pred", str(root / "labelsTr"), "--ref", str(root / "labelsTr")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("evaluate needs more memory than there is ([enforce fail")


def test_sizes_and_colors_are_refused_with_the_file(plain: Predictor, root: Path, tmp_path: Path) -> None:
    write_nifti(tmp_path / "big.nii.gz", np.zeros((18, 16, 9), np.float32), np.diag([200, 200, 200, 1.0]))
    with pytest.raises(DataError, match=r"big\.nii\.gz: 9 x 16 x 18 voxels of 200 x 200 x 200 mm .* far more"):
        plain.files(tmp_path / "big.nii.gz", tmp_path / "out")
    data = plain.recipe.data.model_copy(update={"normalization": "auto", "channels": ("rgb_to_0_1",)})
    colored = Predictor(plain.recipe.model_copy(update={"data": data}), plain.model, device="cpu")
    with pytest.raises(DataError, match=r"a_0000\.nii\.gz: channel 0 has values -.*'rgb_to_0_1' expects 0 … 255"):
        colored.files(scan(root, "a"), tmp_path / "out")
    assert read_labels(root / "labelsTr" / "a.nii.gz").array.max() == 2
