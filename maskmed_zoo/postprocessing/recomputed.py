"""Probabilities of validation cases, which nobody keeps, computed again by the weights of their fold.

One case at a time goes through the network, and of each slab of probabilities what thresholds can change is kept, in a
file of a temporary folder.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from maskmed_zoo.data.case import load_image
from maskmed_zoo.errors import DataError
from maskmed_zoo.files import unwritable
from maskmed_zoo.inference.postprocessing import Step
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.labels import Labels
from maskmed_zoo.postprocessing.counts import AtThresholds, CaseCounts, LabelCounts
from maskmed_zoo.postprocessing.place import Maps, Place
from maskmed_zoo.postprocessing.thresholds import Collector, Undecided, changes_alone
from maskmed_zoo.runner.load import load

DIFFERING = 1e-3
"""Share of the voxels with a label that may come out otherwise than in the label map, as GPUs round."""


class Recomputed:
    """Cases with thresholds, by files in `folder`; `differing`: shares of voxels that came out otherwise, by case."""

    def __init__(self, folder: Path, labels: Labels, device: str | None) -> None:
        self.folder, self.labels, self.device = folder, labels, device
        self.differing: dict[str, float] = {}
        self._latest: tuple[str, Predictor] | None = None

    @classmethod
    @contextmanager
    def in_temporary_folder(cls, labels: Labels, device: str | None) -> Generator[Recomputed]:
        """Whose files are gone afterwards."""
        with TemporaryDirectory(prefix="maskmed-thresholds-", ignore_cleanup_errors=True) as folder:
            yield cls(Path(folder), labels, device)

    def case(self, place: Place) -> CaseCounts:
        """Raises `DataError` as `Place.read`, and where the network does not give the label map any more."""
        maps = place.read(self.labels)
        undecided = self._undecided(place, maps)
        undecided = undecided.only(undecided.winners({}) == maps.prediction.flat[undecided.voxels])
        there = maps.reference.flat[undecided.voxels]
        counts = maps.counts(self.labels)
        changes = changes_alone(undecided, there, counts, self.labels)
        file = self.folder / f"{len([*self.folder.iterdir()])}.npz"
        try:
            undecided.write(file)
        except OSError as error:
            raise unwritable(file, error) from error
        known: dict[tuple[Step, ...], Mapping[str, LabelCounts]] = {}

        def together(steps: tuple[Step, ...]) -> Mapping[str, LabelCounts]:
            if steps not in known:
                known[steps] = self._together(place, file, steps)
            return known[steps]

        return CaseCounts(place.name, place.patient, counts, AtThresholds(changes, together))

    def _together(self, place: Place, file: Path, steps: tuple[Step, ...]) -> dict[str, LabelCounts]:
        """Of the label map at several thresholds."""
        maps, undecided = place.read(self.labels), Undecided.read(file)
        weights = {self.labels[step.label]: step.weight for step in steps}
        maps.prediction.flat[undecided.voxels] = undecided.winners(weights)
        return maps.counts(self.labels)

    def _undecided(self, place: Place, maps: Maps) -> Undecided:
        image, geometry = load_image(place.case)
        collector = Collector(image.shape[1:])
        found = self._predictor(place).segment(image, geometry, slabs=collector.take).labels
        share = 1.0
        if found.shape == maps.prediction.shape:
            has_label = np.count_nonzero((found > 0) | (maps.prediction > 0))
            share = np.count_nonzero(found != maps.prediction) / max(1, has_label)
        if share > DIFFERING:
            raise DataError(
                f"case '{place.name}': the network does not give the label map in {place.run.predictions} any more, "
                f"{100 * share:.2g} % of the voxels with a label are others; move it away, and 'maskmed-zoo evaluate "
                f"{place.run.path}' with this device makes it anew"
            )
        if share:
            self.differing[place.name] = share
        return collector.result()

    def _predictor(self, place: Place) -> Predictor:
        """Of the run of a place; one is held at a time."""
        if self._latest is None or self._latest[0] != place.sha256:
            self._latest = None
            self._latest = place.sha256, load(place.run, which=place.which, device=self.device)
        return self._latest[1]
