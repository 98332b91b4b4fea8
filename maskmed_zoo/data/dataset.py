"""nnU-Net's raw data folder: which cases there are, what their channels and labels mean, and how they are split.

```
root/dataset.json                channel_names, labels, file_ending; see `data.description`
root/imagesTr/CASE_0000.nii.gz   one file per channel       root/labelsTr/CASE.nii.gz   root/splits_final.json (or not)
root/annotated.json              for partial labels, see `data.annotated`
```
Where dataset.json lists its cases under `dataset`, images and label maps are those, wherever they lie.
Source: nnU-Net v2, documentation/dataset_format.md.
Deviations: no region labels; `splits_final.json` lies in the raw folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from maskmed_zoo.data.annotated import ANNOTATED, annotated_labels
from maskmed_zoo.data.case import Case, grouped, image_files
from maskmed_zoo.data.description import (
    Listed,
    channel_names,
    file_ending,
    label_values,
    listed_cases,
    read_description,
    remarks,
)
from maskmed_zoo.data.formats import DEFAULT, stem_of
from maskmed_zoo.data.names import hint
from maskmed_zoo.data.problem import ProblemError, Tell, refuse
from maskmed_zoo.data.splits import default_folds, read_folds
from maskmed_zoo.errors import DataError
from maskmed_zoo.files import usable
from maskmed_zoo.labels import Labels

SPLITS = "splits_final.json"


class Split(NamedTuple):
    """Cases that train, and cases that validate."""

    training: tuple[Case, ...]
    validation: tuple[Case, ...]


@dataclass(frozen=True)
class RawDataset:
    """A checked nnU-Net raw folder; `labels` maps names to values as in dataset.json, 'ignore' included.

    `remarks` are lines on what its dataset.json says to no effect.
    """

    root: Path
    name: str
    channels: tuple[str, ...]
    labels: Labels
    cases: tuple[Case, ...]
    ending: str = DEFAULT
    remarks: tuple[str, ...] = ()

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
        source = self.root / SPLITS
        by_name = {case.identifier: case for case in self.cases}
        folds = read_folds(source, by_name) if source.exists() else default_folds(sorted(by_name), self.root)
        where = source if source.exists() else self.root
        if not folds:
            raise DataError(
                f"{where}: no fold {fold}, the list is empty; add folds, or remove it for nnU-Net's default"
            )
        if not 0 <= fold < len(folds):
            choice = (
                f"there are {len(folds)}, choose 0 … {len(folds) - 1}" if len(folds) > 1 else "there is one, choose 0"
            )
            raise DataError(f"{where}: no fold {fold}; {choice}")
        chosen = folds[fold]
        return Split(*(tuple(by_name[n] for n in names) for names in (chosen.training, chosen.validation)))


def open_dataset(root: str | Path, *, tell: Tell = refuse) -> RawDataset:
    """Read and check a raw folder (names and numbers of files, not their voxels); `DataError` says what to repair.

    Where `tell` lets problems of single cases pass, the cases have the files that are there: perhaps no label map, or
    fewer images than channels. What makes a folder no data set at all is raised nevertheless.
    """
    root = usable(Path(root), DataError)
    source = root / "dataset.json"
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the data set's folder, the one that holds dataset.json")
    if not source.is_file() and (root.parent / source.name).is_file():
        raise DataError(f"{root}: is a part of a data set; give the folder around it, {root.parent}")
    if not source.is_file():
        raise DataError(f"{root}: no dataset.json; describe channel_names, labels and file_ending there")
    description = read_description(source)
    ending, channels = file_ending(description, source), channel_names(description, source)
    labels = label_values(description, source)
    files = listed_cases(description, source, len(channels), tell=tell)
    files = _in_folders(root, ending, len(channels), tell) if files is None else files
    annotations = root / ANNOTATED
    annotated = annotated_labels(annotations, labels, files, tell=tell) if annotations.exists() else {}
    cases = tuple(Case(name, images, label, annotated.get(name)) for name, (images, label) in files.items())
    name = description.get("name")
    return RawDataset(
        root=root,
        name=name if isinstance(name, str) and name.strip() else root.name,
        channels=channels,
        labels=labels,
        cases=cases,
        ending=ending,
        remarks=remarks(description, source, files),
    )


def _in_folders(root: Path, ending: str, channels: int, tell: Tell) -> Listed:
    """The files of imagesTr and labelsTr by case; tells where an image has no label map, or the other way about."""
    folder = root / "imagesTr"
    images = grouped(folder, image_files(folder, (ending,)), channels, tell=tell)
    folder = root / "labelsTr"
    maps = {stem_of(path): path for path in image_files(folder, (ending,))}
    for name in images:
        if name not in maps:
            what = f"no {name}{ending} for the image in {root / 'imagesTr'}{hint(name, maps.keys() - images)}"
            tell(ProblemError(folder, what, "add it or remove the image", kind="missing label", case=name))
    for name, path in maps.items():
        if name not in images:
            what = f"no image {name}_0000{ending} in {root / 'imagesTr'}"
            tell(ProblemError(path, what, "add it or remove the label map", kind="missing image", case=name))
    return {name: (images.get(name, ()), maps.get(name)) for name in sorted(images.keys() | maps)}


def declared_labels(source: Path) -> Labels:
    """The labels of a dataset.json; raises `DataError` where they cannot be used."""
    return label_values(read_description(source), source)
