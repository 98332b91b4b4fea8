"""What is one file in its folder: every one that lies there, and the examples of CONTRIBUTING put beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import maskmed_zoo as zoo
from maskmed_zoo.data import formats as image_formats
from maskmed_zoo.data.image import Geometry
from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation import metrics as metric_files
from maskmed_zoo.evaluation.case import LabelMapPair, score_case
from maskmed_zoo.export import formats as export_formats
from maskmed_zoo.export.export import export
from maskmed_zoo.labels import Labels
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.weights import card
from tests.conftest import make_dataset

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (image_formats, metric_files, export_formats)
LABELS = Labels({"background": 0, "liver": 1, "spleen": 2, "kidney": 3, "aorta": 4})


@pytest.fixture(autouse=True)
def _in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example files of CONTRIBUTING, found as if they lay in the package."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.findall(r"`(maskmed_zoo/\S+\.py)`:\n\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 3
    for name, code in found:
        path = tmp_path / "examples" / name
        path.parent.mkdir(parents=True)
        path.write_text(code, encoding="utf-8")
    for package in FOLDERS:
        extra = tmp_path / "examples" / package.__name__.replace(".", "/")
        assert extra.is_dir()
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(extra)])
    monkeypatch.setattr(card, "FILES", (*card.FILES, "weights.pt"))
    _forget(image_formats, metric_files)
    yield
    monkeypatch.undo()
    _forget(image_formats, metric_files)


def _forget(*packages: ModuleType) -> None:
    for package in packages:
        getattr(package, package.__name__.rpartition(".")[2]).cache_clear()


def test_metrics_give_numbers_for_the_labels_they_are_asked_for() -> None:
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 3, (6, 7, 8)).astype(np.int16)
    prediction = reference.copy()
    prediction[:2] = 0
    prediction[0, 0, 0] = 3  # kidney: invented; aorta: in neither
    pair = LabelMapPair("a", prediction, reference, LABELS, frozenset(LABELS.foreground), (2.0, 1.0, 0.5))
    one_hot = [(name, (prediction == value).astype(np.float32)) for name, value in LABELS.items()]
    pair = replace(pair, probabilities=one_hot)
    known = metric_files.metrics()
    assert set(known) >= {"dice", "missed_volume"}
    scored = score_case(pair, list(known.values()))
    for name, metric in known.items():
        values = scored.scores[name].values
        assert list(values) == list(LABELS.foreground)
        there = list(values.values())[: 2 if name == "lesion_sq" else 3]  # which is of pairs, and kidney has none
        assert all(value is not None and np.isfinite(value) for value in there), name
        assert values["aorta"] == metric.both_absent
        assert metric.definition in metric.rules()
        assert not metric.definition.endswith(".")
    voxels = int((reference == 1).sum() - (prediction == 1).sum())
    assert scored.scores["missed_volume"].values["liver"] == pytest.approx(voxels / 1000)
    assert scored.scores["missed_volume"].values["kidney"] == 0


def test_a_metric_is_asked_for_by_name_and_written_with_its_declaration(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    scores = zoo.evaluate(pred=data / "labelsTr", ref=data / "labelsTr", metrics=["missed_volume"])
    found = scores["metrics"]["missed_volume"]
    assert found["mean_missed_volume"] == 0
    assert (found["unit"], found["higher_is_better"]) == ("mL", False)
    assert "computed as any other" in found["definition"]


def test_image_formats_write_what_they_read(tmp_path: Path) -> None:
    endings = image_formats.written_endings()
    assert set(endings) >= {".nii.gz", ".npz"}
    affine = np.array([[0, 0, 2.5, 7], [-1.5, 0, 0, 90], [0, -2.0, 0, -30], [0, 0, 0, 1]])
    geometry = Geometry(affine, (4, 5, 6))
    array = np.random.default_rng(0).integers(0, 300, geometry.canonical_shape).astype(np.int16)
    for ending in endings:
        path = tmp_path / f"labels{ending}"
        image_formats.write_labels(path, array, geometry)
        again = image_formats.read_labels(path)
        assert np.array_equal(again.array, array)
        assert np.allclose(again.geometry.canonical_affine, geometry.canonical_affine, atol=1e-4)
        assert np.array_equal(image_formats.read_image(path).array, array)
        for content in (b"", path.read_bytes()[:-40], b"no image at all"):
            path.write_bytes(content)
            with pytest.raises(DataError, match=re.escape(path.name)) as caught:
                image_formats.read_image(path)
            assert "\n" not in str(caught.value)


def test_export_formats_give_folders_that_load(tiny_recipe: Path, tmp_path: Path) -> None:
    run = RunFolder(zoo.train(tiny_recipe, data=make_dataset(tmp_path / "data"), out=tmp_path / "run", device="cpu",
                              train__epochs=1, train__iterations_per_epoch=1))  # fmt: skip
    assert set(export_formats.names()) >= {"weights", "state_dict"}
    image = np.random.default_rng(0).normal(0, 100, (9, 18, 18)).astype(np.float32)
    expected = zoo.load(run.path, device="cpu").probabilities(image, spacing=(2, 1, 1))
    for name in export_formats.names():
        folder = tmp_path / name
        export(run, folder, license="CC0-1.0", format=name)
        assert np.array_equal(zoo.load(folder, device="cpu").probabilities(image, spacing=(2, 1, 1)), expected)
    model = zoo.create(run.recipe_file, pretrained=tmp_path / "state_dict" / "weights.pt")
    assert sum(p.numel() for p in model.parameters()) > 0
