"""Pictures of folders: which cases, whose images, and what is left where nothing can be drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import main
from maskmed_zoo.errors import ArgumentError, DataError, OutputError, UserError
from maskmed_zoo.report.overview import ShownCase
from maskmed_zoo.runner import pictures
from maskmed_zoo.runner.pictures import OVERVIEW, RELIABILITY, extremes, score_folders

AFFINE = np.diag([-1.0, 2.0, 3.0, 1.0])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Cases a to e, of which c is best, then e, d, b and a; a's image is missing, b's on another grid."""
    pred, ref = tmp_path / "pred", tmp_path / "data" / "labelsTs"
    for folder in (ref.parent, pred):
        folder.mkdir()
    (ref.parent / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    for name, missed in zip("abcde", (7, 6, 0, 4, 2), strict=True):
        reference = np.zeros((12, 10, 8), np.uint8)
        reference[2:10, 3:7, 2:6] = 1
        prediction = reference.copy()
        prediction[2 : 2 + missed] = 0
        save(ref / f"{name}.nii.gz", reference)
        save(pred / f"{name}.nii.gz", prediction)
        if name != "a":
            affine = AFFINE if name != "b" else np.eye(4)
            save(ref.parent / "imagesTs" / f"{name}_0000.nii.gz", reference.astype(np.float32) * 50, affine)
    return pred, ref


def test_a_case_without_a_prediction_is_drawn_as_that(folders: tuple[Path, Path], shown: list[ShownCase]) -> None:
    pred, ref = folders
    (pred / "d.nii.gz").unlink()
    score_folders(pred, ref, pictures=pred / "pictures", missing_as_missed=True)
    assert [("no prediction" in case.lines, case.lines[0]) for case in shown if case.heading == "worst"] == [
        (True, "d")
    ]
    assert sum("no prediction" in case.lines for case in shown) == 1


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[ShownCase]:
    """What is drawn."""
    found: list[ShownCase] = []
    draw = pictures.overview_figure

    def spy(path: Path, title: str, cases: Any, labels: Any) -> Path:
        found.extend(cases)
        return draw(path, title, found, labels)

    monkeypatch.setattr(pictures, "overview_figure", spy)
    return found


def test_worst_median_and_best(folders: tuple[Path, Path], tmp_path: Path, shown: list[ShownCase]) -> None:
    scores = score_folders(*folders, pictures=tmp_path / "pictures")
    assert [(case.heading, case.lines[0]) for case in shown] == [("worst", "a"), ("median", "d"), ("best", "c")]
    assert shown[0].lines[1] == f"mean Dice {scores['cases'][0]['mean']:.4f}" == "mean Dice 0.2222"
    assert shown[0].image is None
    assert shown[1].image.max() == 50
    assert [int(case.differs.sum()) for case in shown] == [7 * 16, 4 * 16, 0]
    assert shown[1].spacing == (3.0, 2.0, 1.0)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [OVERVIEW]


def test_an_image_on_another_grid_is_left_out(
    folders: tuple[Path, Path], tmp_path: Path, shown: list[ShownCase]
) -> None:
    pred, ref = folders
    for folder in (pred, ref):
        (folder / "a.nii.gz").unlink()
    score_folders(pred, ref, pictures=tmp_path)
    assert [(case.lines[0], case.image is None) for case in shown] == [("b", True), ("d", False), ("c", False)]


def test_an_image_that_cannot_be_read_is_left_out_and_told(
    folders: tuple[Path, Path], tmp_path: Path, shown: list[ShownCase], caplog: pytest.LogCaptureFixture
) -> None:
    pred, ref = folders
    broken = ref.parent / "imagesTs" / "c_0000.nii.gz"
    broken.write_bytes(b"no image")
    scores = score_folders(pred, ref, pictures=tmp_path)
    assert len(scores["cases"]) == 5
    assert [case.image is None for case in shown] == [True, False, True]
    assert str(broken) in caplog.text
    assert "drawn without an image" in caplog.text


def test_labels_that_nobody_annotated_are_told_to_the_picture(
    folders: tuple[Path, Path], tmp_path: Path, shown: list[ShownCase]
) -> None:
    pred, ref = folders
    labels = {"background": 0, "liver": 1, "spleen": 2}
    (ref.parent / "dataset.json").write_text(json.dumps({"labels": labels}))
    (ref.parent / "annotated.json").write_text(json.dumps({name: [1] for name in "abcde"}))
    score_folders(pred, ref, pictures=tmp_path)
    assert [list(case.unannotated) for case in shown] == [[2]] * 3


def test_label_maps_that_nothing_describes(folders: tuple[Path, Path], tmp_path: Path, shown: list[ShownCase]) -> None:
    pred, ref = folders
    (ref.parent / "dataset.json").unlink()
    score_folders(pred, ref, pictures=tmp_path / "out")
    assert [case.lines[0] for case in shown] == ["a", "d", "c"]
    assert (tmp_path / "out" / OVERVIEW).is_file()


def test_pictures_of_an_earlier_evaluation_go(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pred, ref = folders
    for path in pred.glob("*.nii.gz"):
        p = nib.load(path).get_fdata().transpose(2, 1, 0)
        np.savez(path.with_name(f"{path.name[0]}.npz"), probabilities=np.stack([1 - p, p]).astype(np.float16))
    out = tmp_path / "out"
    words = ["evaluate", "--pred", str(pred), "--ref", str(ref), "--pictures", str(out)]
    assert main([*words, "--metrics", "ece,brier"]) == 0
    assert {path.name for path in out.iterdir()} == {OVERVIEW, RELIABILITY}
    assert main(words) == 0
    assert {path.name for path in out.iterdir()} == {OVERVIEW}


def test_extremes() -> None:
    def names(*means: float | None) -> dict[str, str]:
        cases = [{"case": f"c{index}", "mean": value} for index, value in enumerate(means)]
        return {heading: case["case"] for heading, case in extremes({"cases": cases}).items()}

    assert names() == names(None, None) == {}
    assert names(0.5, None) == {"worst": "c0"}
    assert names(0.5, 0.2) == {"worst": "c1", "best": "c0"}
    assert names(0.5, 0.2, 0.9) == {"worst": "c1", "median": "c0", "best": "c2"}
    assert names(0.1, 0.4, 0.3, 0.2) == {"worst": "c0", "median": "c3", "best": "c1"}
    assert names(0.5, 0.5, 0.5) == {"worst": "c0", "median": "c1", "best": "c2"}


def test_nothing_is_made_where_nothing_can_be_drawn(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pred, ref = folders
    with pytest.raises(ArgumentError, match="pictures and missing_as_missed belong to pred and ref"):
        zoo.evaluate(tmp_path / "run", pictures=tmp_path / "out")
    (pred / "e.nii.gz").unlink()
    with pytest.raises(DataError, match=r"no prediction for e\.nii\.gz"):
        score_folders(pred, ref, pictures=tmp_path / "out")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="pictures need matplotlib"):
        score_folders(pred, ref, pictures=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    monkeypatch.undo()
    monkeypatch.setattr(pictures, "evaluate_folders", lambda *_, **__: pytest.fail("scored in vain"))
    with pytest.raises(OutputError):
        score_folders(pred, ref, pictures=tmp_path / "file")
