"""`data check`: faults planted into a clean data set, each found with its case and kind, and nothing else."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import main
from maskmed_zoo.data.check.finding import Finding
from maskmed_zoo.data.check.table import finding_table, summary
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.data.formats import read_labels
from maskmed_zoo.data.problem import ProblemError
from maskmed_zoo.errors import ArgumentError, DataError
from tests.conftest import make_dataset, write_nifti

CASES = 14
FOLDS = [{"train": [f"case_{i:02d}" for i in range(7)], "val": [f"case_{i:02d}" for i in range(7, CASES)]}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean data set, with folds."""
    root = make_dataset(tmp_path_factory.mktemp("clean") / "Dataset001_Boxes", CASES)
    (root / "splits_final.json").write_text(json.dumps(FOLDS), encoding="utf-8")
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(whole, tmp_path / whole.name)


def image(root: Path, case: int, channel: int = 0) -> Path:
    return root / "imagesTr" / f"case_{case:02d}_{channel:04d}.nii.gz"


def label(root: Path, case: int) -> Path:
    return root / "labelsTr" / f"case_{case:02d}.nii.gz"


def change(
    path: Path,
    array: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda a: a,
    affine: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda a: a,
) -> None:
    """Write a file anew, as float32."""
    stored = nib.load(path)
    write_nifti(path, array(np.asarray(stored.dataobj, np.float64)).astype(np.float32), affine(stored.affine.copy()))


def one(value: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The first voxel replaced."""
    return lambda array: np.concatenate([[value], array.ravel()[1:]]).reshape(array.shape)


def describe(root: Path, **changes: object) -> None:
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def found(root: Path) -> set[tuple[str, str, str]]:
    return {(finding.case, finding.kind, finding.severity) for finding in zoo.check_data(root)}


def test_nothing_in_a_clean_one(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.check_data(whole) == []
    assert main(["data", "check", str(whole)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{whole}: nothing found\n"
    assert err == f"checking cases of {whole}: {CASES}\n"


@pytest.mark.parametrize("workers", [1, 3])
def test_planted_faults_are_found_and_nothing_else(root: Path, workers: int) -> None:
    label(root, 0).unlink()
    change(image(root, 1), affine=lambda a: a + np.outer([1, 0, 0, 0], [0, 0, 0, 5]))
    change(label(root, 2), one(7))
    change(image(root, 3), one(np.nan))
    change(label(root, 4), np.zeros_like)
    cut(image(root, 5))
    shutil.copy(image(root, 6), image(root, 8))  # of the same size, as every second one
    for path in (image(root, 7), label(root, 7)):
        change(path, affine=lambda a: a @ np.diag([4, 1, 1, 1.0]))
    change(image(root, 9), lambda a: a + 1024)
    write_nifti(image(root, 10, 3), np.zeros((4, 4, 4)), np.eye(4))
    change(image(root, 11), np.ones_like)
    image(root, 12).unlink()
    for path in (image(root, 13), label(root, 13)):
        change(path, lambda a: a[::-1], lambda a: a @ np.diag([-1, 1, 1, 1.0]))
    folds = [{"train": [*FOLDS[0]["train"], "case_99"], "val": FOLDS[0]["val"]}]
    (root / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    expected = {
        ("case_00", "missing label", "error"),
        ("case_01", "geometry", "error"),
        ("case_02", "label values", "error"),
        ("case_03", "not finite", "error"),
        ("case_04", "no foreground", "remark"),
        ("case_05", "unreadable file", "error"),
        ("case_07", "spacing", "remark"),
        ("case_08", "duplicate image", "error"),
        ("case_09", "intensity", "remark"),
        ("case_10", "surplus channel", "error"),
        ("case_11", "constant image", "error"),
        ("case_12", "missing image", "error"),
        ("case_13", "orientation", "remark"),
        ("case_99", "splits", "error"),
    }
    found = zoo.check_data(root, workers=workers)
    kinds = {(finding.case, finding.kind, finding.severity) for finding in found}
    assert kinds - {("case_11", "intensity", "remark"), ("case_08", "intensity", "remark")} == expected
    assert [finding.case for finding in found] == sorted(finding.case for finding in found)


def test_a_problem_can_leave_its_process() -> None:
    problem = ProblemError(Path("a.nii.gz"), "is empty", "copy it again", kind="unreadable file", case="a")
    again = pickle.loads(pickle.dumps(problem))
    assert (str(again), again.kind, again.case) == ("a.nii.gz: is empty; copy it again", "unreadable file", "a")


def test_ten_faults_in_a_real_data_set(real_data: Path, tmp_path: Path) -> None:
    """Planted into a copy of 200 cases; the clean one has none."""
    source = real_data / "Dataset004_Hippocampus"
    assert zoo.check_data(source) == []
    root = shutil.copytree(source, tmp_path / source.name)
    cases = [case.identifier for case in open_dataset(root).cases[10:120:10]]
    images = [root / "imagesTr" / f"{case}_0000.nii.gz" for case in cases]
    labels = [root / "labelsTr" / f"{case}.nii.gz" for case in cases]
    labels[0].unlink()
    change(images[1], affine=lambda a: a + np.outer([1, 0, 0, 0], [0, 0, 0, 5]))
    change(labels[2], one(7))
    change(images[3], one(np.nan))
    change(labels[4], np.zeros_like)
    cut(images[5])
    for file, other in ((images[6], images[7]), (labels[6], labels[7])):
        shutil.copy(file, other)
    write_nifti(root / "imagesTr" / f"{cases[8]}_0001.nii.gz", np.zeros((4, 4, 4)), np.eye(4))
    for path in (images[9], labels[9]):
        change(path, affine=lambda a: a @ np.diag([4, 1, 1, 1.0]))
    change(images[10], lambda a: -a)
    assert found(root) == {
        (cases[0], "missing label", "error"),
        (cases[1], "geometry", "error"),
        (cases[2], "label values", "error"),
        (cases[3], "not finite", "error"),
        (cases[4], "no foreground", "remark"),
        (cases[5], "unreadable file", "error"),
        (cases[7], "duplicate image", "error"),  # on both sides of a fold
        (cases[8], "surplus channel", "error"),
        (cases[9], "spacing", "remark"),
        (cases[10], "intensity", "remark"),
    }


CHANGES: dict[str, tuple[Callable[[Path], object], tuple[str, str, str], str]] = {
    "cut label map": (lambda r: cut(label(r, 2)), ("case_02", "unreadable file", "error"), "copy"),
    "no image file": (lambda r: image(r, 2).write_bytes(b"<html>"), ("case_02", "unreadable file", "error"), "copy"),
    "label map of fractions": (lambda r: change(label(r, 2), one(0.5)), ("case_02", "label values", "error"), "save"),
    "crop of the label map": (lambda r: change(label(r, 2), lambda a: a[1:]), ("case_02", "geometry", "error"), "grid"),
    "infinite": (lambda r: change(image(r, 2), one(np.inf)), ("case_02", "not finite", "error"), "finite value"),
    "no number": (
        lambda r: image(r, 2).rename(r / "imagesTr" / "case_77.nii.gz"),
        ("case_77", "file name", "error"),
        "rename it to case_77_0000.nii.gz",
    ),
    "label in no case": (
        lambda r: describe(r, labels={"background": 0, "left": 1, "right": 2, "liver": 3}),
        ("", "absent label", "remark"),
        "remove it from labels",
    ),
    "range of colors": (
        lambda r: describe(r, channel_names={"0": "rgb_to_0_1"}),
        ("case_05", "value range", "error"),
        "name the channel otherwise",
    ),
    "splits are no JSON": (
        lambda r: (r / "splits_final.json").write_text("["), ("", "splits", "error"), "correct it there"
    ),
    "case on both sides": (
        lambda r: (r / "splits_final.json").write_text('[{"train": ["case_01"], "val": ["case_01"]}]'),
        ("case_01", "splits", "error"),
        "keep it in one of them",
    ),
    "annotated is a list": (
        lambda r: (r / "annotated.json").write_text("[]"), ("", "annotated labels", "error"), "write"
    ),
    "annotated contradicts": (
        lambda r: (r / "annotated.json").write_text(
            json.dumps({f"case_{i:02d}": [1] if i == 3 else [1, 2] for i in range(CASES)})
        ),
        ("case_03", "annotated labels", "error"),
        "list 2 there or remove the voxels",
    ),
    "annotated leaves out": (
        lambda r: (r / "annotated.json").write_text(json.dumps({f"case_{i:02d}": [1, 2] for i in range(13)})),
        ("case_13", "annotated labels", "error"),
        "[1, 2] if it is complete",
    ),
    "shape": (
        lambda r: [change(p, lambda a: np.tile(a, (4, 1, 1))) for p in (image(r, 3), label(r, 3))],
        ("case_03", "shape", "remark"),
        "look at the image",
    ),
    "inverted": (lambda r: change(image(r, 3), lambda a: -a), ("case_03", "intensity", "remark"), "look at image"),
    "duplicate on one side": (
        lambda r: shutil.copy(image(r, 2), image(r, 4)), ("case_04", "duplicate image", "remark"), "keep one of them"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_each_with_what_to_do(name: str, root: Path) -> None:
    does, expected, remedy = CHANGES[name]
    does(root)
    rows = [row for row in zoo.check_data(root) if (row.case, row.kind, row.severity) == expected]
    assert rows
    assert remedy in rows[0].remedy
    assert str(root) not in f"{rows[0].problem} {rows[0].remedy} {rows[0].file}"
    others = {row.case for row in zoo.check_data(root)} - {expected[0]}
    assert not others or name in ("no number", "range of colors", "duplicate on one side")


def test_channels_of_a_case(root: Path) -> None:
    """Of two, one on another grid, one constant, one missing, one the copy of the other."""
    describe(root, channel_names={"0": "CT", "1": "MRI"})
    rng = np.random.default_rng(3)
    for case in range(CASES):
        shutil.copy(image(root, case), image(root, case, 1))
        change(image(root, case, 1), lambda a: rng.normal(size=a.shape))
    change(image(root, 2, 1), affine=lambda a: a @ np.diag([1, 1, 1.5, 1]))
    change(image(root, 3, 1), np.zeros_like)
    image(root, 4, 0).unlink()
    shutil.copy(image(root, 5, 0), image(root, 5, 1))
    assert found(root) - {("case_05", "intensity", "remark")} == {
        ("case_02", "geometry", "error"),
        ("case_03", "constant image", "error"),
        ("case_04", "missing channel", "error"),
        ("case_05", "duplicate image", "remark"),
    }


def test_scanners_of_other_scales_are_no_outliers_but_other_tissue_is(root: Path) -> None:
    """Of a channel that is normalized case by case."""
    describe(root, channel_names={"0": "MRI"})
    for case in range(CASES):
        change(image(root, case), lambda a, case=case: (a + 300) * 10.0 ** (case % 5))
    assert found(root) == set()
    change(image(root, 6), lambda a: a.max() - a)
    assert found(root) == {("case_06", "intensity", "remark")}


def test_cases_that_the_description_lists(root: Path) -> None:
    entries = {
        f"case_{i:02d}": {"images": [f"imagesTr/case_{i:02d}_0000.nii.gz"], "label": f"labelsTr/case_{i:02d}.nii.gz"}
        for i in range(CASES)
    }
    describe(root, dataset=entries)
    assert found(root) == set()
    describe(root, dataset=entries | {"case_07": entries["case_00"]})  # the one trains and the other validates
    assert found(root) == {("case_07", "duplicate image", "error")}
    entries["case_01"]["label"] = "labelsTr/gone.nii.gz"
    entries["case_02"] = {"images": "x"}  # type: ignore[assignment]
    entries["case_03"]["images"] *= 2
    entries["case_04"]["images"] = ["dataset.json"]
    describe(root, dataset=entries)
    findings = found(root)
    assert {case for case, kind, _ in findings if kind in ("description", "missing channel")} == {
        *("case_01", "case_02", "case_03", "case_04")
    }
    assert ("case_03", "duplicate image", "remark") in findings


def test_few_cases_are_not_compared(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "few", 4)
    for path in (image(root, 1), label(root, 1)):
        change(path, affine=lambda a: a @ np.diag([4, 1, 1, 1.0]))
    assert found(root) == set()
    assert found(make_dataset(tmp_path / "one", 1)) == {("", "splits", "error")}


def test_json_table_and_exit_codes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label(root, 0).unlink()
    change(label(root, 4), np.zeros_like)
    assert main(["data", "check", str(root), "--json", "--workers", "2"]) == 1
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [Finding(**row) for row in rows] == zoo.check_data(root)
    assert rows[0]["file"] == "labelsTr"
    assert err.splitlines()[-1] == f"{root}: 1 error and 1 remark in 2 cases"
    assert main(["data", "check", str(root)]) == 1
    assert "case_04" in capsys.readouterr().out
    for words in ([str(root / "labelsTr")], [str(root / "nowhere")], [str(root), "--workers", "0"]):
        assert main(["data", "check", *words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
    (root / "dataset.json").write_text("{}")
    assert main(["data", "check", str(root)]) == 2
    with pytest.raises(DataError, match="no channel_names"):
        zoo.check_data(root)
    with pytest.raises(ArgumentError, match="workers"):
        zoo.check_data(root, workers=0)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_keeps_every_word(width: int) -> None:
    finding = Finding(
        "hippocampus_001", "imagesTr/hippocampus_001_0000.nii.gz", "unreadable file", "error",
        "1200 of 5000 bytes of its header's promise", "the file is cut off: copy it again",
    )  # fmt: skip
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(finding_table([finding]))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    words = ("hippocampus_001", "imagesTr/hippocampus_001", "1200", "promise", "copy", "again")
    assert all(word in " ".join(lines) for word in words)
    assert summary([finding]) == "1 error and 0 remarks in 1 case"


def test_the_checks_of_training_still_refuse_the_first(root: Path) -> None:
    """What is collected here ends the work there."""
    label(root, 0).unlink()
    image(root, 3).unlink()
    with pytest.raises(DataError, match=r"no case_00\.nii\.gz"):
        open_dataset(root)


def test_real_data_is_clean(real_data: Path) -> None:
    assert zoo.check_data(real_data / "Dataset004_Hippocampus") == []


def test_contours_beside_the_organ_are_found_in_real_data(real_data: Path) -> None:
    """pt_221: the brainstem's contour lies on vertebrae, of a scan that was cut out; seen in the images."""
    folder = real_data / "Dataset102_HeadNeckCT_Partial"
    rows = {row.case: row for row in zoo.check_data(folder)}
    assert rows["pt_221"].kind == "intensity"
    assert "'brainstem'" in rows["pt_221"].problem
    assert 1 in read_labels(folder / "labelsTr" / "pt_221.nii.gz").array
    assert all(row.severity == "remark" for row in rows.values())
    assert len(rows) <= 6
