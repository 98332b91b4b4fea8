"""`postprocessing.json`: what is to be done, what it was chosen from, and what that is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from maskmed_zoo.evaluation.mean import mean
from maskmed_zoo.evaluation.statistics.bootstrap import RESAMPLES, paired_bootstrap
from maskmed_zoo.evaluation.statistics.holm import LEVEL
from maskmed_zoo.inference.postprocessing import FORMAT, Chosen, Do, Step
from maskmed_zoo.postprocessing.candidates import FRACTIONS, QUANTILE
from maskmed_zoo.postprocessing.choose import PARTS, Candidate, choose, cross_fitted, kept, overall
from maskmed_zoo.postprocessing.counts import CaseCounts
from maskmed_zoo.postprocessing.thresholds import GRID

DEFINITIONS = {
    "steps": "what 'predict' does: thresholds, while label maps are made of probabilities, then all holes, then parts",
    "threshold": "the label's probability is multiplied by (1 - at) / at before the most probable label is taken; "
    f"candidates: {', '.join(f'{at:g}' for at in GRID)}",
    "fill_holes": "background, connected through faces, that one label alone encloses and that does not touch the "
    "border of the image becomes that label",
    "remove_small": "parts (26 neighbours) of a label of less than below_mm3 become background; candidates: the "
    f"{100 * QUANTILE:.0f} % quantile of the volumes of the label's parts in the references, times "
    f"{' and '.join(f'{share:g}' for share in FRACTIONS)}",
    "keep_largest": "all parts (26 neighbours) of a label but the largest become background",
    "mean": "mean change in the label's Dice over the cases in which it was annotated, against the label maps as "
    "predicted; a label that neither map has counts as 1. A threshold moves voxels between labels, so of one it is the "
    "mean over all cases of the sum of the changes of the labels annotated in them",
    "others": "of a threshold: mean change in the sum of the Dice of the other labels, which is part of mean",
    "interval": "95 %, percentiles of the bootstrap over patients",
    "p": "two-sided, over patients: the largest one of that bootstrap's, the signed-rank test's and Student's t test's "
    "with Hall's correction of skewness; p_holm is corrected by Holm over all candidates that were tested; null for "
    "those that change nothing, or the same as another",
    "verdict": "kept: p_holm under 0.05 and a positive mean, and no threshold that costs its own label, or the "
    "others together, more than it brings in sum; of several rules for the parts of a label, and of several "
    "of its thresholds, the one with the largest mean",
    "together": "change of all steps in the mean Dice over the labels of a case, on the cases that they were chosen "
    "on: too favourable, as any choice is on its own cases",
    "cross_fitted": f"the same with the choice made anew for each of {PARTS} parts of the patients on the others: what "
    "the procedure, not this very choice, brings on other cases to single networks, not to the mean of several; its "
    "interval does not know that the choices share cases, nor that networks of a study that predicted the other "
    "parts were trained on the held-out patients",
}


class Row(BaseModel):
    """A candidate; the numbers are null where it was not tested."""

    label: str
    do: Do
    below_mm3: float | None
    at: float | None
    mean: float | None = None
    others: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None
    better: int | None = None
    equal: int | None = None
    worse: int | None = None
    verdict: str


class Change(BaseModel):
    """Of the mean Dice over the labels of a case."""

    mean: float
    interval: tuple[float, float]


class Document(Chosen):
    """The whole file."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

    weights: Literal["last", "best"]
    date: str
    cases: int
    patients: int
    candidates: list[Row]
    together: Change | None
    cross_fitted: Change | None
    definitions: dict[str, str]


def document_of(
    cases: Sequence[CaseCounts], labels: Sequence[str], *, weights: Literal["last", "best"], sha256: str, date: str
) -> Document:
    """What is chosen on these cases, for the `weights` with the checksum `sha256`."""
    found = choose(cases, labels)
    steps, patients = kept(found), {case.name: case.patient for case in cases}
    return Document(
        format=FORMAT,
        weights=weights,
        weights_sha256=sha256,
        date=date,
        cases=len(cases),
        patients=len(set(patients.values())),
        steps=steps,
        candidates=[_row(one) for one in found],
        together=_change(overall(cases, steps), patients),
        cross_fitted=_change(cross_fitted(cases, labels), patients),
        definitions=DEFINITIONS,
    )


def remarks(document: Document, *, is_mean: bool) -> list[str]:
    """What a user should know of the choice; `is_mean`: the networks of several folds predict together."""
    found: list[str] = []
    tests, others = sum(row.p is not None for row in document.candidates), document.patients * (PARTS - 1) // PARTS
    too_few = "too few for any step to be kept, whatever it brings; have more cases, or fewer candidates"
    for patients, where in ((document.patients, ""), (others, " of other parts")):
        if tests and tests * max(2.0 ** (1 - patients), 2 / RESAMPLES) >= LEVEL:
            found.append(f"{tests} candidates on {patients} patients{where}: {too_few}")
            break
    if is_mean and any(step.kind == "threshold" for step in document.steps):
        found.append(
            "thresholds were chosen on the probabilities of single folds, and are applied to the mean of all, which is "
            "less sure: look at its label maps"
        )
    return found


def _row(found: Candidate) -> Row:
    step: Step = found.step
    return Row(**step.model_dump(), verdict=found.verdict, **found.numbers)


def _change(changes: Mapping[str, float] | None, patients: Mapping[str, str]) -> Change | None:
    """None without any case."""
    average = mean((changes or {}).values())
    if not changes or average is None:
        return None
    (resampled,) = paired_bootstrap([changes], patients)
    return Change(mean=average, interval=resampled.interval)
