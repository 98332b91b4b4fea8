"""Where validation cases of a run lie, and what is read of one: its predicted label map beside its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.case import Case, check_values
from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.data.formats import DEFAULT, read_labels
from maskmed_zoo.data.image import check_same_geometry
from maskmed_zoo.data.predicted import PredictedFolder
from maskmed_zoo.data.sources import Data
from maskmed_zoo.errors import DataError
from maskmed_zoo.inference.predictor import settings_of
from maskmed_zoo.labels import Labels
from maskmed_zoo.postprocessing.counts import LabelCounts, counts_of
from maskmed_zoo.runner.evaluate import patients_of, validation_cases
from maskmed_zoo.runner.run_folder import RunFolder, Which


@dataclass(frozen=True, eq=False)
class Maps:
    """Predicted and reference label map (z y x) of a case, both with the values of the run, and what is scored."""

    prediction: NDArray[Any]
    reference: NDArray[np.int16]
    spacing: Sequence[float]
    wanted: Sequence[str]

    def counts(self, labels: Labels) -> dict[str, LabelCounts]:
        """Of the wanted labels; the prediction has its holes filled then."""
        return counts_of(self.prediction, self.reference, labels, self.wanted, self.spacing)


@dataclass(frozen=True)
class Place:
    """A validation case, whose it is, and the weights and settings that `predict` takes for it."""

    name: str
    case: Case
    dataset: RawDataset
    run: RunFolder
    which: Which
    sha256: str
    settings: Mapping[str, Any]
    patient: str

    def read(self, labels: Labels) -> Maps:
        """Raises `DataError` for a case without a label map of these weights and settings, or a usable reference."""
        target, record = self.run.predictions / f"{self.name}{DEFAULT}", PredictedFolder(self.run.predictions)
        option = "" if self.which == "last" else f" --weights {self.which}"
        remedy = f"'maskmed-zoo evaluate {self.run.path}{option}' makes it"
        if record.weights_of(target.name) != self.sha256 or not target.is_file():
            raise DataError(f"{target}: no label map of the {self.which} weights; {remedy}")
        if not record.is_made_with(target.name, self.sha256, self.settings):
            raise DataError(
                f"{target}: made with other settings than the run predicts with now "
                f"({', '.join(f'{key} {value}' for key, value in self.settings.items())}); {remedy} anew"
            )
        if self.case.label is None:
            raise DataError(f"{self.dataset.root}: validation case '{self.name}' has no label map")
        prediction, reference = read_labels(target), read_labels(self.case.label)
        check_same_geometry(reference, prediction)
        check_values(set(np.unique(reference.array).tolist()), self.case, self.dataset)
        theirs = self.dataset.labels.renumbering(labels)[reference.array]
        annotated = self.dataset.annotated(self.case)
        return Maps(
            prediction.array, theirs, prediction.spacing, [one for one in labels.foreground if one in annotated]
        )


def places_of(run: RunFolder, data: Data | None, which: Which, sha256: str) -> list[Place]:
    """Of all validation cases of a run, whose weights `which` have this checksum."""
    recipe = run.recipe(with_loss=False)
    settings = settings_of(recipe, recipe.data.mirror_axes if recipe.inference.mirror else ())
    cases = validation_cases(run.manifest(), data, recipe.channels)
    patients = patients_of(cases)
    return [
        Place(name, *found, run, which, sha256, settings, patients.get(name, name)) for name, found in cases.items()
    ]
