"""nnU-Net raw folders: what is found in them, how they are split, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from maskmed_zoo.data.case import Case, load_case
from maskmed_zoo.data.dataset import RawDataset, open_dataset
from maskmed_zoo.data.inputs import find_cases
from maskmed_zoo.labels import Labels
from tests.conftest import refusal

DATA = Path(__file__).parents[2].parent / "shared" / "data"
DESCRIPTION = {
    "name": "Toy",
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "liver": 1, "ignore": 2},
    "file_ending": ".nii.gz",
}
SHAPE = (3, 4, 5)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1, 2, 3, 1.0]) if affine is None else affine), path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A good data set of two channels and the cases b, a_1 and c."""
    folder = tmp_path / "Dataset900_Toy"
    for number, name in enumerate(("b", "a_1", "c")):
        for channel in range(2):
            save(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz", np.full(SHAPE, 10 * number + channel, np.int16))
        save(folder / "labelsTr" / f"{name}.nii.gz", np.full(SHAPE, number, np.uint8))
    (folder / "dataset.json").write_text(json.dumps(DESCRIPTION))
    return folder


def describe(root: Path, **changes: object) -> None:
    content = {k: v for k, v in (DESCRIPTION | changes).items() if v is not None}
    (root / "dataset.json").write_text(json.dumps(content))


def test_a_good_dataset(root):
    dataset = open_dataset(root)
    assert (dataset.root, dataset.name, dataset.channels) == (root, "Toy", ("CT", "PET"))
    assert dataset.labels == {"background": 0, "liver": 1, "ignore": 2}
    assert dataset.ignore_label == 2
    assert [case.identifier for case in dataset.cases] == ["a_1", "b", "c"]
    images = root / "imagesTr"
    assert dataset.cases[0] == Case(
        "a_1", (images / "a_1_0000.nii.gz", images / "a_1_0001.nii.gz"), root / "labelsTr" / "a_1.nii.gz"
    )
    assert open_dataset(str(root)) == dataset


def test_older_and_sparser_descriptions(root):
    describe(root, channel_names=None, modality={"1": "PET", "0": "CT"}, name=None, file_ending=None)
    dataset = open_dataset(root)
    assert (dataset.name, dataset.channels) == ("Dataset900_Toy", ("CT", "PET"))
    describe(root, labels={"liver": 1, "background": 0, "spleen": 2})
    assert open_dataset(root).ignore_label is None


def test_hidden_and_foreign_files_are_passed_over(root):
    (root / "imagesTr" / "._b_0000.nii.gz").write_bytes(b"")
    (root / "labelsTr" / "notes.txt").write_text("")
    assert len(open_dataset(root).cases) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"file_ending": ".mha"}, "file_ending '.mha'"),
        ({"channel_names": None}, "no channel_names"),
        ({"channel_names": {"0": "CT", "2": "PET"}}, "['0', '2']"),
        ({"channel_names": {"0": 1, "1": 2}}, "each with a name"),
        ({"labels": None}, "no labels"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "'whole' is a region [1, 2]"),
        ({"labels": {"0": "background", "1": "liver"}}, "expected an integer"),
        ({"labels": {"background": 0, "liver": True}}, "expected an integer"),
        ({"labels": {"liver": 0, "spleen": 1}}, "background: 0"),
        ({"labels": {"background": 0, "liver": 2}}, "gaps"),
        ({"labels": {"background": 0, "ignore": 1, "liver": 2}}, "'ignore'"),
        ({"labels": {"background": 0}}, "foreground"),
    ],
)
def test_descriptions_that_are_refused(root, changes, words):
    describe(root, **changes)
    message = refusal(open_dataset, root)
    assert message.startswith(f"{root / 'dataset.json'}: ")
    assert words in message


def test_missing_folder_missing_and_invalid_json(root):
    assert "no such folder" in refusal(open_dataset, root / "nowhere")
    source = root / "dataset.json"
    source.write_text('{\n  "name": "Toy",\n  "labels" 3\n}')
    assert refusal(open_dataset, root).startswith(f"{source}:3:12: invalid JSON")
    source.write_text("[]")
    assert "expected an object" in refusal(open_dataset, root)
    source.write_bytes(b'{"name": "\xff"}')
    assert "UTF-8" in refusal(open_dataset, root)
    source.unlink()
    assert "no dataset.json" in refusal(open_dataset, root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: (r / "labelsTr" / "b.nii.gz").unlink(), "labelsTr: no b.nii.gz for the image"),
        (lambda r: [p.unlink() for p in (r / "imagesTr").glob("b_*")], "b.nii.gz: no image b_0000.nii.gz"),
        (lambda r: (r / "imagesTr" / "b_0001.nii.gz").unlink(), "case 'b' lacks b_0001.nii.gz (channel 1)"),
        (lambda r: (r / "imagesTr" / "b_0000.nii.gz").unlink(), "case 'b' lacks b_0000.nii.gz (channel 0)"),
        (lambda r: save(r / "imagesTr" / "b_0002.nii.gz", np.zeros(SHAPE)), "b_0002.nii.gz: channel 2, but 2 declared"),
        (lambda r: save(r / "imagesTr" / "d.nii.gz", np.zeros(SHAPE)), "rename it to d_0000.nii.gz"),
        (lambda r: [p.unlink() for p in (r / "imagesTr").iterdir()], "imagesTr: no images"),
        (lambda r: (r / "imagesTr").rename(r / "images"), "imagesTr: no such folder"),
        (lambda r: (r / "labelsTr").rename(r / "labels"), "labelsTr: no such folder"),
    ],
)
def test_folders_that_are_refused(root, change, words):
    change(root)
    message = refusal(open_dataset, root)
    assert str(root) in message
    assert words in message


# --- partial labels ---------------------------------------------------------------------------------------------------


def annotate(root: Path, content: object) -> Path:
    describe(root, labels={"background": 0, "liver": 1, "spleen": 2, "ignore": 3})
    (root / "annotated.json").write_text(json.dumps(content))
    return root


def test_cases_know_what_was_looked_for(root):
    assert {case.annotated for case in open_dataset(root).cases} == {None}
    dataset = open_dataset(annotate(root, {"c": [2, 1], "b": [1], "a_1": [2]}))
    assert [case.annotated for case in dataset.cases] == [{"spleen"}, {"liver"}, {"liver", "spleen"}]
    assert [dataset.annotated(case) for case in dataset.cases] == [case.annotated for case in dataset.cases]
    (root / "annotated.json").unlink()
    complete = open_dataset(root)
    assert complete.annotated(complete.cases[0]) == {"liver", "spleen"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "expected an object of label values by case"),
        ({"a_1": [1], "b": [1], "cc": [1]}, "no case 'cc'; did you mean 'c'?"),
        ({"a_1": [1], "c": [1, 2]}, "case 'b' is not listed; add the label values annotated in it, [1, 2] if it"),
        ({"a_1": [1], "b": [1, 4], "c": [1]}, "case 'b' lists 4, which is no label (1 liver, 2 spleen)"),
        ({"a_1": [1], "b": [0], "c": [1]}, "case 'b' lists 0, which is no label"),
        ({"a_1": [1], "b": [3], "c": [1]}, "case 'b' lists 3, which is no label"),
        ({"a_1": [1], "b": [], "c": [1]}, "case 'b' has [], expected the label values that are annotated"),
        ({"a_1": [1], "b": None, "c": [1]}, "case 'b' has None, expected the label values"),
        ({"a_1": [1], "b": ["liver"], "c": [1]}, "case 'b' has ['liver'], expected the label values"),
        ({"a_1": [1], "b": [True], "c": [1]}, "case 'b' has [True], expected the label values"),
        ({"a_1": [1], "b": [1.0], "c": [1]}, "case 'b' has [1.0], expected the label values"),
    ],
)
def test_annotated_files_that_are_refused(root, content, words):
    message = refusal(open_dataset, annotate(root, content))
    assert message.startswith(f"{root / 'annotated.json'}: ")
    assert words in message


def test_annotated_file_with_invalid_json(root):
    (root / "annotated.json").write_text("{")
    assert f"{root / 'annotated.json'}:1:2: invalid JSON" in refusal(open_dataset, root)


def test_labels_that_nobody_looked_for_must_not_be_there(root):
    dataset = open_dataset(annotate(root, {"a_1": [2], "b": [2], "c": [2]}))
    assert load_case(dataset.cases[2], dataset)[1].max() == 2
    message = refusal(load_case, dataset.cases[0], dataset)
    assert message.startswith(
        f"{root / 'labelsTr' / 'a_1.nii.gz'}: voxels of 'liver' (1), which annotated.json does not"
    )
    assert "for case 'a_1'" in message
    save(root / "labelsTr" / "a_1.nii.gz", np.full(SHAPE, 3, np.uint8))
    assert (load_case(dataset.cases[0], dataset)[1] == 3).all()  # 'ignore' may be anywhere


# --- splits -----------------------------------------------------------------------------------------------------------

# The validation indices of scikit-learn's KFold(n, shuffle=True, random_state=12345).split, n = min(5, cases).
KFOLD = {
    2: [[1], [0]],
    3: [[0], [1], [2]],
    4: [[0], [3], [1], [2]],
    5: [[0], [4], [3], [1], [2]],
    7: [[3, 6], [0, 4], [1], [5], [2]],
    11: [[0, 3, 7], [6, 10], [8, 9], [1, 4], [2, 5]],
    13: [[0, 7, 9], [3, 6, 10], [8, 11, 12], [1, 4], [2, 5]],
}


def bare(count: int, root: Path) -> RawDataset:
    cases = tuple(Case(f"{i:02d}", (), None) for i in range(count))
    return RawDataset(root, "bare", ("CT",), Labels({"background": 0, "x": 1}), cases)


@pytest.mark.parametrize("count", KFOLD)
def test_default_split_is_that_of_scikit_learn(tmp_path, count):
    dataset = bare(count, tmp_path)
    for fold, expected in enumerate(KFOLD[count]):
        train, val = dataset.splits(fold)
        assert [int(case.identifier) for case in val] == expected
        assert [int(case.identifier) for case in train] == [i for i in range(count) if i not in expected]
    for fold in (-1, len(KFOLD[count])):
        assert f"no fold {fold}; there are {len(KFOLD[count])}" in refusal(dataset.splits, fold)


def test_one_case_cannot_be_split(tmp_path):
    assert "at least 2" in refusal(bare(1, tmp_path).splits, 0)


def test_splits_file_goes_before_the_default(root):
    dataset = open_dataset(root)
    (root / "splits_final.json").write_text(json.dumps([{"train": ["c", "a_1"], "val": ["b"]}]))
    train, val = dataset.splits(0)
    assert ([c.identifier for c in train], [c.identifier for c in val]) == (["c", "a_1"], ["b"])
    assert "no fold 1; there is one, choose 0" in refusal(dataset.splits, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"train": ["a_1", "bb"], "val": ["c"]}], "fold 0 names unknown case 'bb'"),
        ([{"train": ["a_1", "c"], "val": ["c"]}], "'c' in train and val"),
        ([{"train": ["a_1", "a_1"], "val": ["c"]}], "twice"),
        ([{"train": ["a_1"], "val": []}], "0 validation cases"),
        ([{"train": ["a_1"]}], "expected a list of folds"),
        ({"train": ["a_1"], "val": ["b"]}, "expected a list of folds"),
        ([3], "expected a list of folds"),
        (3, "expected a list of folds"),
        ([], "no fold 0"),
    ],
)
def test_splits_files_that_are_refused(root, content, words):
    (root / "splits_final.json").write_text(json.dumps(content))
    message = refusal(open_dataset(root).splits, 0)
    assert message.startswith(str(root / "splits_final.json"))
    assert words in message


def test_splits_file_with_invalid_json(root):
    (root / "splits_final.json").write_text("[\n{]")
    assert f"{root / 'splits_final.json'}:2:2: invalid JSON" in refusal(open_dataset(root).splits, 0)


# --- prediction inputs ------------------------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_find_cases_by_channel_files_and_by_plain_names(tmp_path):
    two = touch(tmp_path / "two", "b_0001.nii.gz", "b_0000.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz", "x.txt")
    assert find_cases(two, 2) == (
        Case("a", (two / "a_0000.nii.gz", two / "a_0001.nii.gz"), None),
        Case("b", (two / "b_0000.nii.gz", two / "b_0001.nii.gz"), None),
    )
    one = touch(tmp_path / "one", "b_0000.nii.gz", "a_0000.nii.gz")
    assert [case.identifier for case in find_cases(one, 1)] == ["a", "b"]
    plain = touch(tmp_path / "plain", "scan.nii.gz", "visit_2020.nii.gz")
    assert find_cases(plain, 1) == (
        Case("scan", (plain / "scan.nii.gz",), None),
        Case("visit_2020", (plain / "visit_2020.nii.gz",), None),
    )


def test_find_cases_refusals(tmp_path):
    assert "no such folder" in refusal(find_cases, tmp_path / "none", 1)
    assert "no images" in refusal(find_cases, touch(tmp_path / "empty", "a.txt"), 1)
    mixed = touch(tmp_path / "mixed", "a_0000.nii.gz", "b.nii.gz")
    assert "b.nii.gz: no channel number" in refusal(find_cases, mixed, 1)
    more = touch(tmp_path / "more", "a_0000.nii.gz", "a_0001.nii.gz")
    assert "a_0001.nii.gz: channel 1, but 1 declared" in refusal(find_cases, more, 1)
    assert "lacks a_0002.nii.gz" in refusal(find_cases, more, 3)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_load_case_stacks_channels_and_gives_the_label(root):
    dataset = open_dataset(root)
    image, labels, geometry = load_case(dataset.cases[2], dataset)
    assert (image.shape, image.dtype) == ((2, 5, 4, 3), np.float32)
    assert [np.unique(channel).tolist() for channel in image] == [[20], [21]]
    assert labels is not None
    assert (labels.shape, labels.dtype, np.unique(labels).tolist()) == ((5, 4, 3), np.int16, [2])
    assert geometry.spacing == (3, 2, 1)
    (case,) = (c for c in find_cases(root / "imagesTr", 2) if c.identifier == "c")
    unlabelled, nothing, _ = load_case(case, None)
    assert nothing is None
    np.testing.assert_array_equal(unlabelled, image)


@pytest.mark.parametrize("name", ["imagesTr/b_0001.nii.gz", "labelsTr/b.nii.gz"])
def test_channels_and_label_must_share_a_grid(root, name):
    dataset = open_dataset(root)
    save(root / name, np.zeros(SHAPE, np.uint8), np.diag([1, 2, 3.1, 1]))
    message = refusal(load_case, dataset.cases[1], dataset)
    assert message.startswith(str(root / name))
    assert "b_0000.nii.gz" in message
    save(root / name, np.zeros((3, 4, 6), np.uint8))
    assert "(6, 4, 3)" in refusal(load_case, dataset.cases[1], dataset)


def test_undeclared_label_values_are_named(root):
    dataset = open_dataset(root)
    save(root / "labelsTr" / "b.nii.gz", np.arange(60, dtype=np.int16).reshape(SHAPE) % 5 - 1)
    message = refusal(load_case, dataset.cases[1], dataset)
    assert message.startswith(f"{root / 'labelsTr' / 'b.nii.gz'}: label values -1, 3, expected 0 … 2")


@pytest.mark.parametrize(("name", "count"), [("Dataset004_Hippocampus", 200), ("Dataset101_HeadNeckCT", 121)])
def test_real_datasets(name, count):
    if not (DATA / name).is_dir():
        pytest.skip(f"the example data is not beside the project: {name}")
    dataset = open_dataset(DATA / name)
    assert len(dataset.cases) == count
    val = [{case.identifier for case in dataset.splits(fold)[1]} for fold in range(5)]
    assert set.union(*val) == {case.identifier for case in dataset.cases}
    assert sum(map(len, val)) == count
    image, labels, geometry = load_case(dataset.cases[0], dataset)
    assert labels is not None
    assert image.shape[1:] == labels.shape == geometry.canonical_shape


def test_an_earlier_name_of_a_module_still_imports() -> None:
    from maskmed_zoo.data import formats, nifti

    assert nifti.read_image is formats.read_image
