"""`dataset.json`, key by key: what is used, what is refused by name, and what means nothing here.

Source: nnU-Net v2, documentation/dataset_format.md and `nnunetv2.utilities.utils`. Every key that changes what nnU-Net
reads does the same here or is refused; the others are named once, in `remarks`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from maskmed_zoo.data.formats import DEFAULT, ending_of, formats, written_endings
from maskmed_zoo.data.names import is_file_name
from maskmed_zoo.data.problem import Kind, ProblemError, Tell, refuse
from maskmed_zoo.errors import DataError
from maskmed_zoo.files import is_file, read_json
from maskmed_zoo.labels import BACKGROUND, Labels, LabelsError, is_visible

USED = {"name", "channel_names", "labels", "file_ending", "dataset", "numTraining", "overwrite_image_reader_writer"}
INFORMATIVE = {
    *("description", "reference", "release", "relase", "licence", "license", "citation", "converted_by"),
    *("numTest", "tensorImageSize", "modality", "training", "test", "dataset_name"),
}
"""What nnU-Net v2 and the Medical Segmentation Decathlon write down for people."""
READERS = ("None", "SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")
"""nnU-Net's readers of NIfTI: they differ in the orientation of the array, which is always RAS here."""
Listed = dict[str, tuple[tuple[Path, ...], Path | None]]
"""Image files in channel order and label map, by the case's name; what is missing has been told."""


def read_description(source: Path) -> dict[str, Any]:
    """The object that a dataset.json holds; raises `DataError` for anything else."""
    content = read_json(source)
    if not isinstance(content, dict):
        raise DataError(f"{source}: expected an object with channel_names, labels and file_ending")
    return cast(dict[str, Any], content)


def file_ending(description: Mapping[str, Any], source: Path) -> str:
    """The ending of the data set's files; raises `DataError` for one, or for a reader, that is none of NIfTI's."""
    reader = description.get("overwrite_image_reader_writer")
    if reader is not None and reader not in READERS:
        raise DataError(
            f"{source}: overwrite_image_reader_writer {reader!r} reads other files than NIfTI; convert the files, and "
            f"remove the key"
        )
    ending = description.get("file_ending", DEFAULT)
    if ending not in written_endings():
        expected = " or ".join(f"'{known}'" for known in written_endings())
        raise DataError(f"{source}: file_ending {ending!r}, expected {expected}; convert the files")
    return ending


def channel_names(description: Mapping[str, Any], source: Path) -> tuple[str, ...]:
    """Names of the channels in order, under the key of nnU-Net v2 or that of earlier ones, 'modality'."""
    key = "channel_names" if "channel_names" in description else "modality"
    given = description.get(key)
    if isinstance(given, list):
        raise DataError(f'{source}: {key} is a list; write numbers and names, as in "channel_names": {{"0": "CT"}}')
    if not isinstance(given, dict) or not given:
        raise DataError(f'{source}: no channel_names; write for instance "channel_names": {{"0": "CT"}}')
    names = cast(dict[str, Any], given)
    expected = [str(index) for index in range(len(names))]
    if set(names) != set(expected) or not all(isinstance(n, str) and is_visible(n) for n in names.values()):
        raise DataError(f'{source}: {key} has keys {sorted(names)}, expected {expected}, each with a name ("CT")')
    return tuple(str(names[index]) for index in expected)


def label_values(description: Mapping[str, Any], source: Path) -> Labels:
    """Names and values of the labels; raises `DataError` where they cannot be used, and says how they are written."""
    given = description.get("labels")
    if not isinstance(given, dict) or not given:
        raise DataError(f'{source}: no labels; write for instance "labels": {{"background": 0, "liver": 1}}')
    labels = cast(dict[str, Any], given)
    _refuse_exchanged(labels, source)
    for name, value in labels.items():
        if isinstance(value, list):
            raise DataError(
                f"{source}: label '{name}' is a region {value}, not supported, nor is regions_class_order; "
                f"give each label one integer"
            )
    try:
        return Labels(labels)
    except LabelsError as error:
        raise DataError(f"{source}: {error}") from error


def _refuse_exchanged(labels: Mapping[str, Any], source: Path) -> None:
    """Raise `DataError` for labels as in nnU-Net v1 and the Decathlon, {"0": "background"}, with the right ones."""
    if not all(name.isdecimal() and isinstance(value, str) and not value.isdecimal() for name, value in labels.items()):
        return
    swapped = {BACKGROUND if int(value) == 0 else name: int(value) for value, name in labels.items() if len(value) < 10}
    text = json.dumps(swapped, ensure_ascii=False)
    form = f'"labels": {text}' if len(swapped) == len(labels) else '{"background": 0, …}, each name once'
    raise DataError(
        f"{source}: labels by value, as in nnU-Net version 1 and the Decathlon, expected an integer for each name; "
        f"swap names and values: {form}"
    )


def listed_cases(description: Mapping[str, Any], source: Path, channels: int, *, tell: Tell = refuse) -> Listed | None:
    """The cases of the key 'dataset', whose files may lie anywhere; None without that key.

    Paths are relative to the folder of `source`, and may hold environment variables, as in nnU-Net. Tells of entries of
    another form, and of files that are missing or of another kind; raises `DataError` where there are no entries.
    """
    if "dataset" not in description:
        return None
    entries = description["dataset"]
    if not isinstance(entries, dict) or not entries:
        raise DataError(f"{source}: 'dataset' is {entries!r}, expected cases by name: {_FORM}; or remove the key")
    found: Listed = {}
    for name, entry in sorted(cast(dict[str, Any], entries).items()):
        where = _Entry(name, source, tell)
        if not is_file_name(name):
            where.tell("cannot be the name of a file", "give it another one")
        images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        if not isinstance(images, list) or not isinstance(label, str):
            where.tell(f"lacks a list of images or a label, expected {_FORM}", "correct it there")
            found[name] = ((), None)
            continue
        given = cast(list[Any], images)
        files = [path for image in given if (path := where.file(image)) is not None]
        if len(given) != channels:
            what = f"has {len(given)} images, expected one for each of {channels} channels"
            where.tell(what, "correct it there", "missing channel")
        found[name] = (tuple(files), where.file(label))
    return found


_FORM = '{"NAME": {"images": ["imagesTr/NAME_0000.nii.gz"], "label": "labelsTr/NAME.nii.gz"}}'


@dataclass(frozen=True)
class _Entry:
    """A case of the key 'dataset' in `source`."""

    name: str
    source: Path
    told: Tell

    def tell(self, what: str, remedy: str, kind: Kind = "description") -> None:
        """Something is wrong with it."""
        self.told(ProblemError(self.source, f"'dataset': case '{self.name}' {what}", remedy, kind=kind, case=self.name))

    def file(self, given: Any) -> Path | None:
        """The path that is meant; None where there is no such file, or none that can be read."""
        if not isinstance(given, str) or not given or "\0" in given:
            self.tell(f"has {given!r} for a file, expected a path", "correct it there")
            return None
        path = Path(os.path.normpath(self.source.parent / os.path.expandvars(given)))
        if is_file(path) and ending_of(path) is not None:
            return path
        if is_file(path):
            expected = " or ".join(sorted(formats(), key=len))
            self.tell(f"names {path}, expected a {expected} file", "convert it")
        else:
            self.tell(f"names {path}: no such file", "correct the path, or add it")
        return None


def remarks(description: Mapping[str, Any], source: Path, cases: Collection[str]) -> tuple[str, ...]:
    """What of a dataset.json means nothing here, and what in it contradicts the files that are there."""
    lines: list[str] = []
    unknown = [key for key in description if key not in USED | INFORMATIVE]
    unknown += ["modality"] if {"modality", "channel_names"} <= description.keys() else []
    if unknown:
        lines.append(f"{source}: without a meaning here, and passed over: {', '.join(map(repr, unknown))}")
    number = description.get("numTraining")
    if number is not None and number != len(cases):
        lines.append(f"{source}: numTraining is {number!r}, but there are {len(cases)} cases; all of them are used")
    if "dataset" not in description and (other := _elsewhere(description.get("training"), source.parent)):
        lines.append(f"{source}: 'training' names {other!r}, which is not read; label maps are those of labelsTr")
    return tuple(lines)


def _elsewhere(training: Any, root: Path) -> str | None:
    """A label map in the Decathlon's list of cases that does not lie in labelsTr."""
    for entry in cast(list[Any], training) if isinstance(training, list) else []:
        label = cast(dict[str, Any], entry).get("label") if isinstance(entry, dict) else None
        if isinstance(label, str) and (root / os.path.normpath(label)).parent != root / "labelsTr":
            return label
    return None
