"""The main job on real MRI and CT, with networks and schedules too small to be good: that it runs, and where it puts
its labels. What the recipes reach stands in docs/benchmarks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from maskmed_zoo.data.cache import CaseCache
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.data.fingerprint import fingerprint_dataset
from maskmed_zoo.data.formats import read_labels
from maskmed_zoo.data.patches import PatchDataset
from maskmed_zoo.data.preprocess import Preprocessing
from maskmed_zoo.data.sources import open_sources
from maskmed_zoo.labels import Labels
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.recipe.schema import DataRecipe
from maskmed_zoo.runner.evaluate import evaluate
from maskmed_zoo.runner.predict import predict
from maskmed_zoo.runner.train import train

SMALL = {
    "model.encoder.channels": [4, 8, 16],
    "model.encoder.blocks": 1,
    "model.neck.query_levels": 1,
    "model.neck.width": 24,
    "model.head.width": 24,
    "train.epochs": 1,
    "train.iterations_per_epoch": 2,
    "train.validation_iterations": 1,
}


def few_cases(source: Path, target: Path, count: int) -> Path:
    """The first cases of a data set, linked."""
    cases = open_dataset(source).cases[:count]
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True)
    for case in cases:
        assert case.label is not None
        for path in (*case.images, case.label):
            (target / path.parent.name / path.name).symlink_to(path)
    (target / "dataset.json").symlink_to(source / "dataset.json")
    return target


@pytest.mark.parametrize(
    ("recipe", "dataset"),
    [("maskmed_hippocampus_cpu", "Dataset004_Hippocampus"), ("maskmed_headneck_cpu", "Dataset101_HeadNeckCT")],
)
def test_trains_and_scores(recipe: str, dataset: str, real_data: Path, tmp_path: Path) -> None:
    data = few_cases(real_data / dataset, tmp_path / dataset, 3)
    run = train(load_recipe(recipe, SMALL), data=data, out=tmp_path / "run", device="cpu")
    scores = evaluate(run, device="cpu")
    assert set(scores["labels"]) == set(open_dataset(data).labels) - {"background"}
    for case in scores["cases"]:
        written = nib.load(run.predictions / f"{case['case']}.nii.gz")
        image = nib.load(data / "imagesTr" / f"{case['case']}_0000.nii.gz")
        assert written.shape == image.shape
        np.testing.assert_allclose(written.affine, image.affine, atol=1e-5)


def test_partial_labels_beside_complete_ones(real_data: Path, tmp_path: Path) -> None:
    complete, partial = open_sources(
        [real_data / "Dataset101_HeadNeckCT", f"{real_data / 'Dataset102_HeadNeckCT_Partial'}@all"]
    )
    labels = Labels.merged([complete.dataset.labels, partial.dataset.labels])
    assert list(labels)[5:] == ["mandible", "esophagus", "larynx"]
    assert [len(cases) for cases in partial.splits(0)] == [60, 0]
    listed: dict[str, list[int]] = json.loads((partial.dataset.root / "annotated.json").read_text())
    by_label = Counter(name for case in partial.dataset.cases for name in partial.dataset.annotated(case))
    by_value = Counter(value for values in listed.values() for value in values)
    assert by_label == {name: by_value[value] for name, value in partial.dataset.labels.items() if value}
    recipe = DataRecipe(spacing=(5, 8, 8), patch_size=(16, 16, 16))
    for source, some in ((complete, 5), (partial, None)):
        case = source.dataset.cases[1]
        stats = fingerprint_dataset(source.dataset, [case]).intensities
        cache = CaseCache(tmp_path / "cache", source.dataset, Preprocessing.of(recipe, ("CT",), stats))
        cache.prepare([case])
        parts = [(cache, [case])]
        drawn = PatchDataset(
            parts,
            recipe,
            labels=labels,
            batch_size=2,
            seed=0,
            stream="train",
        )
        patch = drawn[0]
        found = {name for name, value in labels.items() if patch["annotated"][value]} - {"background"}
        assert found == source.dataset.annotated(case)
        assert len(found) == (some or len(listed[case.identifier]))
        assert {int(v) for v in patch["labels"].unique()} <= {0, *(labels[name] for name in found)}


def test_whole_ct_at_its_own_geometry_and_in_any_orientation(real_data: Path, tmp_path: Path) -> None:
    data = few_cases(real_data / "Dataset101_HeadNeckCT", tmp_path / "data", 2)
    overrides = SMALL | {
        "model.head": {"kind": "pointwise"},
        "model.loss": {"kind": "ce_dice"},
        "inference.overlap": 0.0,
    }
    overrides |= {"train.iterations_per_epoch": 10, "data.spacing": [5.0, 8.0, 8.0]}
    del overrides["model.head.width"]
    run = train(load_recipe("maskmed_headneck_cpu", overrides), data=data, out=tmp_path / "run", device="cpu")
    source = real_data / "totalsegmentator_examples" / "unlabelled_ct_1p5mm.nii.gz"
    (path,) = predict(run, [source], tmp_path / "out", device="cpu")
    image, written = nib.load(source), nib.load(path)
    assert written.shape == image.shape
    np.testing.assert_array_equal(written.affine, image.affine)
    assert written.header.get_xyzt_units() == image.header.get_xyzt_units()
    expected = read_labels(path).array
    for codes in ("LAS", "PIR"):
        turned = tmp_path / f"{codes}.nii.gz"
        transform = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(codes)))
        nib.save(image.as_reoriented(transform), turned)
        (again,) = predict(run, [turned], tmp_path / "turned", device="cpu")
        assert "".join(nib.aff2axcodes(nib.load(again).affine)) == codes
        np.testing.assert_array_equal(read_labels(again).array, expected)
