"""nnU-Net's raw data folder: which cases there are, what their channels and labels mean, and how they are split.

```
root/dataset.json                channel_names, labels, file_ending
root/imagesTr/CASE_0000.nii.gz   one file per channel       root/labelsTr/CASE.nii.gz   root/splits_final.json (or not)
root/annotated.json              for partial labels, see `data.annotated`
```
Source: nnU-Net v2, documentation/dataset_format.md.
Deviations: no region labels; `splits_final.json` lies in the raw folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from maskmed_zoo.data.annotated import ANNOTATED, annotated_labels
from maskmed_zoo.data.case import Case, grouped, image_files
from maskmed_zoo.data.formats import DEFAULT, stem_of, written_endings
from maskmed_zoo.data.splits import default_folds, read_folds
from maskmed_zoo.errors import DataError
from maskmed_zoo.files import read_json, usable
from maskmed_zoo.labels import Labels, LabelsError


class Split(NamedTuple):
    """Cases that train, and cases that validate."""

    training: tuple[Case, ...]
    validation: tuple[Case, ...]


@dataclass(frozen=True)
class RawDataset:
    """A checked nnU-Net raw folder; `labels` maps names to values as in dataset.json, 'ignore' included."""

    root: Path
    name: str
    channels: tuple[str, ...]
    labels: Labels
    cases: tuple[Case, ...]
    ending: str = DEFAULT

    @property
    def ignore_label(self) -> int | None:
        """Value of the voxels that count neither in training nor in evaluation, if the data set has one."""
        return self.labels.ignore

    def annotated(self, case: Case) -> frozenset[str]:
        """Names of the labels that were annotated in a case; background and 'ignore' are none of them."""
        return frozenset(self.labels.foreground) if case.annotated is None else case.annotated

    def splits(self, fold: int) -> Split:
        """Training and validation cases of a fold, from `splits_final.json` if there is one, else nnU-Net's default.

        Raises `DataError` for a fold that does not exist, fewer than two cases, or a splits file that names unknown
        cases, names one twice, or leaves a side empty.
        """
        source = self.root / "splits_final.json"
        by_name = {case.identifier: case for case in self.cases}
        folds = read_folds(source, by_name) if source.exists() else default_folds(sorted(by_name), self.root)
        if not 0 <= fold < len(folds):
            where = source if source.exists() else self.root
            raise DataError(f"{where}: no fold {fold}; there are {len(folds)}, choose 0 … {len(folds) - 1}")
        chosen = folds[fold]
        return Split(*(tuple(by_name[n] for n in names) for names in (chosen.training, chosen.validation)))


def open_dataset(root: str | Path) -> RawDataset:
    """Read and check a raw folder (names and numbers of files, not their voxels); `DataError` says what to repair."""
    root = usable(Path(root), DataError)
    source = root / "dataset.json"
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the data set's folder, the one that holds dataset.json")
    if not source.is_file():
        raise DataError(f"{root}: no dataset.json; describe channel_names, labels and file_ending there")
    content = read_json(source)
    if not isinstance(content, dict):
        raise DataError(f"{source}: expected an object with channel_names, labels and file_ending")
    description = cast(dict[str, Any], content)
    ending = description.get("file_ending", DEFAULT)
    if ending not in written_endings():
        expected = " or ".join(f"'{known}'" for known in written_endings())
        raise DataError(f"{source}: file_ending {ending!r}, expected {expected}; convert the files")
    channels, labels = _channels(description, source), _labels(description, source)
    folder = root / "imagesTr"
    images = grouped(folder, image_files(folder, (ending,)), len(channels))
    folder = root / "labelsTr"
    maps = {stem_of(path): path for path in image_files(folder, (ending,))}
    for name in images:
        if name not in maps:
            raise DataError(
                f"{folder}: no {name}{ending} for the image in {root / 'imagesTr'}; add it or remove the image"
            )
    for name, path in maps.items():
        if name not in images:
            raise DataError(
                f"{path}: no image {name}_0000{ending} in {root / 'imagesTr'}; add it or remove the label map"
            )
    source = root / ANNOTATED
    annotated = annotated_labels(source, labels, images) if source.exists() else {}
    cases = tuple(Case(name, files, maps[name], annotated.get(name)) for name, files in images.items())
    return RawDataset(root, str(description.get("name", root.name)), channels, labels, cases, ending)


def declared_labels(source: Path) -> Labels:
    """The labels of a dataset.json; raises `DataError` where they cannot be used."""
    content = read_json(source)
    return _labels(cast(dict[str, Any], content) if isinstance(content, dict) else {}, source)


def _channels(description: dict[str, Any], source: Path) -> tuple[str, ...]:
    given = description.get("channel_names", description.get("modality"))
    if not isinstance(given, dict) or not given:
        raise DataError(f'{source}: no channel_names; write for instance "channel_names": {{"0": "CT"}}')
    names = cast(dict[str, Any], given)
    expected = [str(index) for index in range(len(names))]
    if set(names) != set(expected) or not all(isinstance(name, str) for name in names.values()):
        raise DataError(
            f'{source}: channel_names has keys {sorted(names)}, expected {expected}, each with a name ("CT")'
        )
    return tuple(str(names[index]) for index in expected)


def _labels(description: dict[str, Any], source: Path) -> Labels:
    given = description.get("labels")
    if not isinstance(given, dict) or not given:
        raise DataError(f'{source}: no labels; write for instance "labels": {{"background": 0, "liver": 1}}')
    labels = cast(dict[str, Any], given)
    for name, value in labels.items():
        if isinstance(value, list):
            raise DataError(f"{source}: label '{name}' is a region {value}, not supported; give each label one integer")
    try:
        return Labels(labels)
    except LabelsError as error:
        raise DataError(f"{source}: {error}") from error
