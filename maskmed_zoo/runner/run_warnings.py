"""What goes wrong in a training run, in words: read from its metrics, said once, and kept in `warnings.json`.

Each detector looks at the rows of `metrics.csv` up to now. What a network has not learned yet is no trouble before a
fifth of the run's steps, and at least `FEWEST_STEPS`, have gone by with it, so that a short run is warned in time and a
long one not too early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from maskmed_zoo.errors import UserError
from maskmed_zoo.files import read_json, write_json
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.recipe.schema import TrainRecipe
from maskmed_zoo.runner.callbacks import Callback
from maskmed_zoo.runner.metrics_file import DICE, number

Rows = Sequence[Mapping[str, Any]]
NEVER = 0.005
"""Dice up to which a label counts as not found: it is printed as 0.00."""
FEWEST_STEPS, MOST_STEPS, FEWEST = 500, 25_000, 3
"""Steps, at least and at most, and validations that something has to last."""
EPOCHS = 2
"""Epochs in a row whose gradient norm has to be so much larger; one alone may be a single bad batch."""
TIMES = 10.0
"""How many times the median of the epochs before."""
WAITED, SHARE = 3, 0.5
"""Epochs, of which the first of the run is none, and the share of their time that goes into waiting for patches."""
LISTED = 5
"""Labels that are named in a line."""


class RunWarning(BaseModel):
    """One of them: what kind, which labels it is about, if any, after which epoch (from 0), and what was said."""

    model_config = ConfigDict(strict=True)

    kind: str
    labels: list[str]
    epoch: int
    text: str


class RunWarnings(Callback):
    """Raises `OutputError` where they cannot be kept. `rows` are those of the run, the newest last."""

    def __init__(self, path: Path, rows: Rows, say: Callable[[str], None]) -> None:
        self.path, self.rows, self.say = path, rows, say
        self.found = list[RunWarning]()

    def on_start(self, run: Path, recipe: Recipe, step: int) -> None:
        """Those of epochs that come again are forgotten."""
        self.recipe, before = recipe, read_warnings(self.path)
        self.found = [each for each in before if each.epoch < step // recipe.train.iterations_per_epoch]
        if len(self.found) < len(before):
            self._write()

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Say and keep what is new."""
        new = warnings_of(self.rows, self.recipe, self.found)
        for each in new:
            self.say(f"warning, epoch {each.epoch + 1}: {each.text}")
        if new:
            self.found += new
            self._write()

    def _write(self) -> None:
        if self.found:
            write_json(self.path, [each.model_dump() for each in self.found])
        else:
            self.path.unlink(missing_ok=True)


def read_warnings(path: Path) -> list[RunWarning]:
    """Those of a run; none where the file is missing or damaged."""
    try:
        return TypeAdapter(list[RunWarning]).validate_python(read_json(path)) if path.exists() else []
    except (UserError, ValidationError):
        return []


def warnings_of(rows: Rows, recipe: Recipe, known: Collection[RunWarning] = ()) -> list[RunWarning]:
    """What is to be said after the last of these rows, besides what is known."""
    found: list[RunWarning] = []
    for kind, detect in DETECTORS.items():
        told = [each for each in known if each.kind == kind]
        labels, text = detect(rows, recipe, {label for each in told for label in each.labels})
        if text and (labels or not told):
            found.append(RunWarning(kind=kind, labels=labels, epoch=int(rows[-1]["epoch"]), text=text))
        if text and kind == "queries_collapsed":
            break  # which is why no label is found
    return found


Found = tuple[list[str], str]
"""The labels it is about, and what to say: nothing where all is well."""
NOTHING: Found = ([], "")


def _queries_collapsed(rows: Rows, recipe: Recipe, _: Collection[str]) -> Found:
    """All queries, in all validation patches, answer for one class, or for none."""
    last = _lately(rows, recipe.train)
    answers = [number(row, "query_classes") for row in last]
    if not last or not all(classes is not None and classes <= 1 for classes in answers):
        return NOTHING
    return [], (
        f"all queries answer for one class in {_since(last)}; lower train.optimizer.lr or "
        f"train.optimizer.transformer_scale, or lengthen train.optimizer.warmup_iterations, in a new run"
    )


def _labels_not_found(rows: Rows, recipe: Recipe, known: Collection[str]) -> Found:
    """Labels that the validation patches hold, and of which the network finds nothing."""
    last = _lately(rows, recipe.train)
    if not last:
        return NOTHING
    dice = {name: [number(row, f"{DICE}/{name}") for row in last] for name in recipe.labels.foreground}
    labels = [name for name, values in dice.items() if all(v is not None and v < NEVER for v in values)]
    labels = [name for name in labels if name not in known]
    if not labels:
        return NOTHING
    return labels, (
        f"{_named(labels)} not found in {_since(last)}; look at the references with 'maskmed-zoo data check', raise "
        f"data.foreground_oversampling or data.patch_size, or train longer, in a new run"
    )


def _labels_unseen(rows: Rows, recipe: Recipe, known: Collection[str]) -> Found:
    """Labels in no validation patch, which are the same in every validation."""
    last = [row for row in rows if None not in (number(row, DICE), number(row, "data_seconds"))]  # of this version
    if not last:
        return NOTHING
    names = [name for name in recipe.labels.foreground if number(last[-1], f"{DICE}/{name}") is None]
    labels = [name for name in names if name not in known]
    if not labels:
        return NOTHING
    return labels, (
        f"{_named(labels)} in no validation patch, so that nothing can be said of that here; 'evaluate' will, on whole "
        f"cases; more train.validation_iterations would show it"
    )


def _gradients_explode(rows: Rows, recipe: Recipe, _: Collection[str]) -> Found:
    """Norms far above those of the epochs before, and clipped."""
    norms = [norm for row in rows if (norm := number(row, "gradient_norm")) is not None and math.isfinite(norm)]
    before, last = norms[:-EPOCHS], norms[-EPOCHS:]
    if len(before) < FEWEST:
        return NOTHING
    usual, clip = median(before), recipe.train.optimizer.gradient_clip
    if not all(norm > clip and norm > TIMES * usual for norm in last):
        return NOTHING
    return [], (
        f"the gradient norm is {last[-1]:.3g}, {last[-1] / usual:.0f} times that of the epochs before; lower "
        f"train.optimizer.lr, lengthen train.optimizer.warmup_iterations or lower train.optimizer.gradient_clip, in a "
        f"new run"
    )


def _data_starved(rows: Rows, recipe: Recipe, _: Collection[str]) -> Found:
    """Time that training spends waiting for patches, in every epoch: the first of a session waits as it begins."""
    last = rows[1:][-WAITED:]
    pairs = [(number(row, "data_seconds"), number(row, "seconds")) for row in last]
    shares = [waited / taken for waited, taken in pairs if waited is not None and taken]
    if len(shares) < WAITED or (share := min(shares)) <= SHARE:
        return NOTHING
    return [], (
        f"{100 * share:.0f} % of the time is spent waiting for patches; give more --workers when it is resumed, or put "
        f"the folder of the run, with .maskmed_cache, on a faster disk"
    )


DETECTORS: dict[str, Callable[[Rows, Recipe, Collection[str]], Found]] = {
    "queries_collapsed": _queries_collapsed,
    "labels_not_found": _labels_not_found,
    "labels_unseen": _labels_unseen,
    "gradients_explode": _gradients_explode,
    "data_starved": _data_starved,
}
"""By the kind of what they find."""


def _lately(rows: Rows, train: TrainRecipe) -> Rows:
    """The validated rows of the last steps that count; none where they are too few."""
    if not rows:
        return []
    now, span = int(rows[-1]["iterations"]), min(MOST_STEPS, max(FEWEST_STEPS, train.iterations / 5))
    validated = [row for row in rows if number(row, DICE) is not None]
    late = [row for row in validated if int(row["iterations"]) > now - span]
    late = late if len(late) >= FEWEST else validated[-FEWEST:]
    return late if now >= span and len(late) >= FEWEST else []


def _since(last: Rows) -> str:
    return f"the last {len(last)} validations, since epoch {int(last[0]['epoch']) + 1}"


def _named(labels: Sequence[str]) -> str:
    """`label 'a' is`, or `labels 'a', 'b' and 3 more are`."""
    shown, more = ", ".join(f"'{name}'" for name in labels[:LISTED]), len(labels) - LISTED
    if len(labels) == 1:
        return f"label {shown} is"
    return f"labels {shown}{f' and {more} more' if more > 0 else ''} are"
