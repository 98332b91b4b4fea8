"""Which candidates help on validation cases, and what the choice is worth on cases that it was not made on.

Every candidate is compared with the label maps as predicted, so the family of tests is known before anything is looked
at, and Holm's correction holds for all of them together. p is the largest one of three: the paired bootstrap's; the
signed-rank test's, honest with few patients too, where each resample of five that gain gains; and Student's t with
Hall's correction, for changes that are many small gains and a few large losses. Of several rules for the parts of a
label that help, and of several of its thresholds, the one with the largest mean is applied.

A threshold of one label takes voxels from others or leaves them to these. Its change is therefore the sum of the
changes in Dice of all labels of a case, so that a gain at another label's cost is none; of the other steps, which
change their own label alone, that sum is the label's own change. And a threshold that costs its own label, or the
others together, more than it brings in sum is not applied: it exchanges labels, and two would move a border twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from maskmed_zoo.evaluation.statistics.bootstrap import paired_bootstrap
from maskmed_zoo.evaluation.statistics.holm import LEVEL, holm
from maskmed_zoo.evaluation.statistics.interval import mean_p
from maskmed_zoo.evaluation.statistics.paired import EQUAL, paired_difference
from maskmed_zoo.evaluation.statistics.sample import Scores
from maskmed_zoo.inference.postprocessing import Step
from maskmed_zoo.postprocessing.candidates import candidates
from maskmed_zoo.postprocessing.counts import CaseCounts

PARTS = 5
"""Into which patients are dealt for the cross-fitted change."""
KEPT, SHOWN, NOT_SHOWN, WORSE = "kept", "helps, but less than the one kept", "not shown to help", "makes it worse"
COSTS = "helps, but at the cost of a label"
NOTHING, SAME, ABSENT = "changes no score", "changes the same as one above", "annotated in no case"


@dataclass(frozen=True)
class Candidate:
    """A step, the change that it makes by case, and what is said of it; `numbers` are those of the table."""

    step: Step
    changes: Scores
    numbers: dict[str, Any]
    verdict: str


def choose(cases: Sequence[CaseCounts], labels: Sequence[str]) -> list[Candidate]:
    """All candidates for all labels, tested together; those with the verdict `KEPT` are to be applied."""
    patients = {case.name: case.patient for case in cases}
    found = [(step, _changes(cases, step)) for label in labels for step in candidates(cases, label)]
    verdicts = _uncompared(found)
    open_ = [index for index, verdict in enumerate(verdicts) if not verdict]
    numbers = dict(zip(open_, compared([found[index][1] for index in open_], patients), strict=True))
    for index, row in numbers.items():
        helps = KEPT if row["mean"] > 0 else WORSE
        verdicts[index] = helps if row["p_holm"] < LEVEL else NOT_SHOWN
        if found[index][0].kind == "threshold":
            row["others"] = fmean(_of_others(cases, found[index][0]).values())
            if verdicts[index] == KEPT and min(row["others"], row["mean"] - row["others"]) < -row["mean"]:
                verdicts[index] = COSTS
    rivals: dict[tuple[str, str], list[int]] = {}
    for index in open_:
        if verdicts[index] == KEPT:
            rivals.setdefault((found[index][0].label, found[index][0].kind), []).append(index)
    for several in rivals.values():
        best = max(several, key=lambda index: numbers[index]["mean"])
        verdicts = [SHOWN if index in several and index != best else said for index, said in enumerate(verdicts)]
    return [Candidate(*one, numbers.get(index, {}), verdicts[index]) for index, one in enumerate(found)]


def compared(changes: Sequence[Scores], patients: Mapping[str, str]) -> list[dict[str, Any]]:
    """Of each candidate's change by case: `mean`, `interval`, `p`, `p_holm`, and cases `better`, `equal`, `worse`."""
    if not changes:
        return []
    rows: list[dict[str, Any]] = []
    for change, resampled in zip(changes, paired_bootstrap(changes, patients), strict=True):
        paired = paired_difference([change], [dict.fromkeys(change, 0.0)], patients)
        if paired is not None:
            counts = {"better": paired.higher, "equal": paired.equal, "worse": paired.lower}
            p = max(resampled.p, paired.p, mean_p(change, patients))
            rows.append({"mean": paired.mean, "interval": list(resampled.interval), "p": p} | counts)
    return [row | {"p_holm": p} for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True)]


def kept(found: Sequence[Candidate]) -> list[Step]:
    """The steps to apply."""
    return [one.step for one in found if one.verdict == KEPT]


def overall(cases: Sequence[CaseCounts], steps: Sequence[Step]) -> dict[str, float]:
    """By case the change that steps make together in the mean Dice over the labels annotated in it."""
    changes: dict[str, float] = {}
    for case in cases:
        if case.labels:
            before, after = case.dice([]), case.dice(steps)
            changes[case.name] = fmean(after[label] - before[label] for label in case.labels)
    return changes


def cross_fitted(cases: Sequence[CaseCounts], labels: Sequence[str]) -> dict[str, float] | None:
    """The same, each case with what is chosen on patients of other parts; None for fewer than two patients.

    Patients are dealt to the parts in the order of their names.
    """
    patients = sorted({case.patient for case in cases})
    if len(patients) < 2:
        return None
    part_of = {patient: index % PARTS for index, patient in enumerate(patients)}
    changes: dict[str, float] = {}
    for part in sorted(set(part_of.values())):
        others = [case for case in cases if part_of[case.patient] != part]
        here = [case for case in cases if part_of[case.patient] == part]
        changes |= overall(here, kept(choose(others, labels)))
    return {case.name: changes[case.name] for case in cases if case.name in changes}


def _changes(cases: Sequence[CaseCounts], step: Step) -> dict[str, float]:
    """By case in which the label was annotated; of a threshold by case in which any was, and of all labels."""
    if step.kind == "threshold" and any(step.label in case.labels for case in cases):
        others = _of_others(cases, step)
        return {case.name: others[case.name] + _moved(case, step).get(step.label, 0.0) for case in cases if case.labels}
    there = {case.name: case.labels[step.label] for case in cases if step.label in case.labels}
    return {name: counts.dice([step]) - counts.dice() for name, counts in there.items()}


def _of_others(cases: Sequence[CaseCounts], step: Step) -> dict[str, float]:
    """By case what a threshold changes in the Dice of all labels but its own."""
    return {
        case.name: sum(change for label, change in _moved(case, step).items() if label != step.label)
        for case in cases
        if case.labels
    }


def _moved(case: CaseCounts, step: Step) -> Mapping[str, float]:
    return {} if case.thresholds is None else case.thresholds.changes[step]


def _uncompared(found: Sequence[tuple[Step, Mapping[str, float]]]) -> list[str]:
    """Why a candidate is no test of its own, empty where it is one; nothing of it depends on what helps."""
    verdicts: list[str] = []
    for index, (step, changes) in enumerate(found):
        earlier = [other for kind, other in found[:index] if kind.label == step.label]
        if not changes:
            verdicts.append(ABSENT)
        elif all(abs(change) <= EQUAL for change in changes.values()):
            verdicts.append(NOTHING)
        else:
            verdicts.append(SAME if changes in earlier else "")
    return verdicts
