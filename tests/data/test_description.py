"""dataset.json, splits_final.json and annotated.json: every key is used, refused or told, whatever is written there."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.errors import nearest
from tests.conftest import refusal

LABELS = {"background": 0, "liver": 1}
DESCRIPTION = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz", "numTraining": 3}
ANYTHING: list[Any] = [None, True, 0, -1, 1.5, 10**30, "", "text", [], [[]], [None], {}, {"a": {}}, {"": 0}]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three cases of empty files: what is opened here is not read."""
    for name in ("a", "b", "c"):
        for path in (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz", f"elsewhere/{name}.nii.gz"):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).touch()
    return describe(tmp_path)


def describe(root: Path, **changes: object) -> Path:
    content = {k: v for k, v in (DESCRIPTION | changes).items() if v is not ...}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


# --- keys -------------------------------------------------------------------------------------------------------------


def test_what_people_write_down_is_no_matter(root):
    words = ("name", "description", "reference", "licence", "license", "release", "citation", "converted_by", "relase")
    describe(root, **dict.fromkeys(words, "x"), tensorImageSize="3D", numTest=0, test=[])
    assert open_dataset(root).remarks == ()
    describe(root, training=[{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}], name=["x"])
    assert (open_dataset(root).remarks, open_dataset(root).name) == ((), root.name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"regions_class_order": [1], "colour": 1}, "passed over: 'regions_class_order', 'colour'"),
        ({"modality": {"0": "MR"}}, "passed over: 'modality'"),
        ({"numTraining": 4}, "numTraining is 4, but there are 3 cases"),
        ({"numTraining": "three"}, "numTraining is 'three', but there are 3 cases"),
        (
            {"training": [{"label": "./labelsTr2/a.nii.gz"}]},
            "'training' names './labelsTr2/a.nii.gz', which is not read",
        ),
    ],
)
def test_what_means_nothing_is_told_once(root, changes, words):
    (line,) = open_dataset(describe(root, **changes)).remarks
    assert line.startswith(f"{root / 'dataset.json'}: ")
    assert words in line


@pytest.mark.parametrize("reader", [None, "None", "SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
def test_readers_of_nifti_are_ours(root, reader):
    assert open_dataset(describe(root, overwrite_image_reader_writer=reader)).remarks == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overwrite_image_reader_writer": "Tiff3DIO"}, "overwrite_image_reader_writer 'Tiff3DIO' reads other files"),
        ({"overwrite_image_reader_writer": 3}, "overwrite_image_reader_writer 3 reads other files"),
        ({"labels": {"background": 0, "all": [1, 2]}, "regions_class_order": [1]}, "nor is regions_class_order"),
        (
            {"labels": {"0": "background", "1": "liver", "2": "größe"}},
            "as in nnU-Net version 1 and the Decathlon, expected an integer for each name; swap names and values: "
            '"labels": {"background": 0, "liver": 1, "größe": 2}',
        ),
        ({"labels": {"0": "clear", "1": "liver"}}, '"labels": {"background": 0, "liver": 1}'),
        ({"labels": {"0": "x", "1": "x", "2": "x"}}, '{"background": 0, …}, each name once'),
        ({"labels": {"background": 0, "1": "liver"}}, 'expected an integer as in "liver": 1'),
        ({"labels": {"background": 0, "liver": "1"}}, 'expected an integer as in "liver": 1'),
        ({"labels": {"background": 0, "liver": 1.0}}, 'expected an integer as in "liver": 1'),
        ({"labels": {"Background": 0, "liver": 1}}, "rename 'Background' to 'background'"),
        ({"labels": {"BACKGROUND": 1, "liver": 2}}, "rename it to 'background' and give it the value 0"),
        ({"labels": {"background": 0, "Background": 1}}, "there are 'background' and 'Background'"),
        ({"labels": {"background": 0, "liver": 1, "Ignore": 2}}, "rename it to 'ignore'"),
        ({"labels": {"background": 0, "": 1}}, "a label is called ''"),
        ({"labels": {"background": 0, " \t": 1}}, "a label is called ' \\t'"),
        ({"labels": {"background": 0, "li\nver": 1}}, "a label is called 'li\\nver'"),
        ({"labels": {"background": 0, "liver": 10**30}}, "expected at most 32767"),
        ({"channel_names": ["CT"]}, "channel_names is a list"),
        ({"channel_names": {"0": " "}}, "each with a name"),
        ({"channel_names": {"0": None}}, "each with a name"),
    ],
)
def test_what_is_refused_says_what_to_write(root, changes, words):
    message = refusal(open_dataset, describe(root, **changes))
    assert message.startswith(f"{root / 'dataset.json'}: ")
    assert words in message


@pytest.mark.parametrize("key", ["channel_names", "labels", "file_ending", "dataset", "overwrite_image_reader_writer"])
@pytest.mark.parametrize("value", ANYTHING)
def test_any_value_of_a_key_that_is_used_is_one_line_or_fine(root, key, value):
    fine = {"overwrite_image_reader_writer": [None]}
    describe(root, **{key: value})
    if value in fine.get(key, []) and value is None:
        open_dataset(root)
    else:
        assert "\n" not in refusal(open_dataset, root)


def test_thousands_of_labels_are_no_burden(root):
    labels = {"background": 0} | {f"label {i}": i for i in range(1, 20000)}
    assert len(open_dataset(describe(root, labels=labels)).labels) == 20000
    assert "the same value" in refusal(open_dataset, describe(root, labels=labels | {"twice": 7}))


# --- cases that dataset.json lists ------------------------------------------------------------------------------------


def test_listed_cases_are_those_of_nnunet(root, monkeypatch):
    monkeypatch.setenv("WHERE", "elsewhere")
    cases = {
        "z": {"images": ["imagesTr/a_0000.nii.gz"], "label": "$WHERE/a.nii.gz"},
        "é": {"images": ["./elsewhere/../imagesTr/b_0000.nii.gz"], "label": str(root / "elsewhere" / "b.nii.gz")},
    }
    describe(root, dataset=cases, numTraining=2)
    dataset, theirs = open_dataset(root), get_filenames_of_train_images_and_targets(str(root))
    ours = {c.identifier: {"images": [str(p) for p in c.images], "label": str(c.label)} for c in dataset.cases}
    assert ours == theirs
    assert dataset.remarks == ()
    assert [case.identifier for case in dataset.splits(0).validation] == ["é"]


IMAGES = ["imagesTr/a_0000.nii.gz"]


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("a", {"images": IMAGES}, "lacks a list of images or a label"),
        ("a", {"images": IMAGES[0], "label": "labelsTr/a.nii.gz"}, "lacks a list of images or a label"),
        ("a", {"images": [3], "label": "labelsTr/a.nii.gz"}, "has 3 for a file"),
        ("a", {"images": [], "label": "labelsTr/a.nii.gz"}, "has 0 images, expected one for each of 1 channels"),
        ("a", {"images": IMAGES * 2, "label": "labelsTr/a.nii.gz"}, "has 2 images, expected one for each of 1"),
        ("a", {"images": IMAGES, "label": "labelsTr/x.nii.gz"}, "labelsTr/x.nii.gz: no such file"),
        ("a", {"images": IMAGES, "label": "labelsTr"}, "labelsTr: no such file"),
        ("a", {"images": IMAGES, "label": "dataset.json"}, "expected a .nii or .nii.gz file"),
        ("a", {"images": IMAGES, "label": "a\0b"}, "for a file, expected a path"),
        ("../a", {"images": IMAGES, "label": "labelsTr/a.nii.gz"}, "cannot be the name of a file"),
        ("", {"images": IMAGES, "label": "labelsTr/a.nii.gz"}, "cannot be the name of a file"),
        ("a\n", {"images": IMAGES, "label": "labelsTr/a.nii.gz"}, "cannot be the name of a file"),
    ],
)
def test_listed_cases_that_are_refused(root, name, entry, words):
    message = refusal(open_dataset, describe(root, dataset={name: entry}))
    assert message.startswith(f"{root / 'dataset.json'}: 'dataset'")
    assert words in message


# --- names of cases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (["a"], "fold 0 is text, expected a list of folds"),
        ({"train": ["a"], "val": ["b"]}, "holds an object, expected a list of folds"),
        (None, "holds null, expected a list of folds"),
        ([{}], "fold 0 is an object, expected a list of folds"),
        ([{"training": ["a"], "val": ["b"]}], "has the keys ['training', 'val']"),
        ([{"train": "abc", "val": ["b"]}], "fold 0 has text as 'train', expected a list of case names"),
        ([{"train": ["a"], "val": None}], "fold 0 has null as 'val', expected a list of case names"),
        ([{"train": ["a"], "val": [1]}], "fold 0 has the number 1 in 'val', expected names"),
        ([{"train": ["a", ["b"]], "val": ["c"]}], "fold 0 has a list in 'train', expected names"),
        ([{"train": ["a"], "val": [True]}], "fold 0 has true or false in 'val', expected names"),
        (
            [{"train": ["a.nii.gz"], "val": ["b"]}],
            "'a.nii.gz'; names of cases stand without ending and channel number, as 'a'",
        ),
        ([{"train": ["a_0000.nii.gz"], "val": ["b"]}], "as 'a'; remove it"),
        ([{"train": ["a_0000"], "val": ["b"]}], "as 'a'; remove it"),
        ([{"train": ["zz"], "val": ["b"]}], "unknown case 'zz'; remove it or add its files"),
        ([{"train": ["a" * 10**6], "val": ["b"]}], "unknown case"),
        ([{"train": [], "val": ["b"]}], "0 training and 1 validation cases"),
        ([{"train": ["a", "a"], "val": ["b"]}], "names the case 'a' twice"),
        ([], "no fold 0, the list is empty; add folds, or remove it"),
    ],
)
def test_splits_that_are_refused(root, content, words):
    (root / "splits_final.json").write_text(json.dumps(content))
    message = refusal(open_dataset(root).splits, 0)
    assert message.startswith(f"{root / 'splits_final.json'}: ")
    assert words in message
    assert "' remove" not in message


@pytest.mark.parametrize("name", ["splits_final.json", "annotated.json"])
@pytest.mark.parametrize("value", ANYTHING)
def test_any_content_of_the_other_files_is_one_line(root, name, value):
    (root / name).write_text(json.dumps(value))
    assert str(root / name) in refusal(lambda: open_dataset(root).splits(0))


def test_letters_encoded_otherwise_are_named(root):
    composed, apart = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    for folder, old, new in (
        ("imagesTr", "a_0000.nii.gz", f"{apart}_0000.nii.gz"),
        ("labelsTr", "a.nii.gz", f"{apart}.nii.gz"),
    ):
        (root / folder / old).rename(root / folder / new)
    (root / "splits_final.json").write_text(json.dumps([{"train": ["b", "c"], "val": [composed]}]))
    assert "has the same letters, encoded otherwise (Unicode NFC or NFD)" in refusal(open_dataset(root).splits, 0)
    (root / "annotated.json").write_text(json.dumps({composed: [1], "b": [1], "c": [1]}))
    assert "(Unicode NFC or NFD): write both alike; remove it" in refusal(open_dataset, root)
    (root / "labelsTr" / f"{apart}.nii.gz").rename(root / "labelsTr" / f"{composed}.nii.gz")
    assert "(Unicode NFC or NFD)" in refusal(open_dataset, root)


def test_names_of_a_million_letters_have_no_neighbours():
    assert nearest("a" * 10**6, ["a" * 10**6 + "b"]) == ""
    assert nearest("livr", ["liver"]) == "; did you mean 'liver'?"
