"""What follows from a difference, and what does not, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskmed_zoo.comparison.numbers import counted, decimals_of, p_value, signed, size
from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.statistics.coverage import level_warning
from maskmed_zoo.evaluation.statistics.holm import LEVEL

Methods = Mapping[str, Mapping[str, Any]]
"""Both by name, each with its counts `missed`, `false`, `unpredicted` and `missed_unpredicted`."""


def sentences(row: Mapping[str, Any], metric: Metric, methods: Methods, over: str = "case") -> dict[str, list[str]]:
    """Keys `follows` and `does_not_follow` of a row of differences over all labels; `over`: 'case' or 'patient'."""
    if row["mean"] is None:
        nothing = f"Nothing: no case has a score of both {row['first']} and {row['second']}."
        return {"follows": [nothing], "does_not_follow": []}
    first, second, better, worse = row["first"], row["second"], row["first"], row["second"]
    if (row["mean"] > 0) != metric.higher_is_better:
        better, worse = worse, better
    places = decimals_of(row, metric.unit)
    by = f"by {size(row['mean'], metric.unit, places)} ({_interval(row, metric, row['mean'], over)})"
    tested = row["p_methods_holm"] is not None
    differ, surely = row["p_holm"] < LEVEL, tested and row["p_methods_holm"] < LEVEL
    networks = differ and row["interval"] is not None and row["interval"][0] * row["interval"][1] > 0
    seen = f"{first} minus {second} is {signed(row['mean'], metric.unit, places)} ({_interval(row, metric, 1, over)})"
    p, p_methods = p_value(row["p_holm"], "p"), p_value(row["p_methods_holm"], "p")
    limits: list[str] = []
    if surely:
        follows = (
            f"{better} is better than {worse} in {metric.title}, {by}; {p_methods} over other {over}s and other "
            f"training runs."
        )
        limits.append(
            f"That it holds for {over}s of another kind, or for every label: see the tables by label (on the terminal "
            f"with --by-label)."
        )
    elif differ and tested:
        follows = (
            f"The trained networks of {first} and {second} differ in {metric.title} over other {over}s ({p}); {seen}."
        )
        limits.append(f"That one is the better method ({p_methods} over {over}s and runs): {_why(row, over)}.")
    elif networks:
        follows = (
            f"{_networks(row, better)} better than {_those(row, worse)} in {metric.title}, {by}; {p} over other "
            f"{over}s."
        )
    elif differ:
        follows = (
            f"The trained networks of {first} and {second} differ in {metric.title} over other {over}s ({p}), but not "
            f"surely in the mean: {seen}. {first} is better in {counted(row['better'], 'case')} and worse in "
            f"{row['worse']}."
        )
    elif row["equal"] == row["cases"]:
        cases = counted(row["cases"], "case")
        follows = f"The scores of {first} and {second} in {metric.title} are identical in all {cases}."
        limits.append("That they are equal: other cases may show a difference.")
    else:
        follows = (
            f"No difference between {first} and {second} in {metric.title} is shown ({p_methods if tested else p}); "
            f"{seen}."
        )
        limits.append(
            "That they are equal: one patient cannot show that."
            if row["interval"] is None
            else "That they are equal: every difference in the interval goes with these scores."
        )
    return {
        "follows": [follows],
        "does_not_follow": [
            *limits,
            *_failures(metric, methods, worse),
            *_limits(row, metric, better if surely or (networks and not tested) else None),
        ],
    }


def _limits(row: Mapping[str, Any], metric: Metric, better: str | None) -> list[str]:
    """What holds against every reading of the row; `better` is what it says is better, if it says so."""
    found: list[str] = []
    singles = [name for name, seeds in zip((row["first"], row["second"]), row["seeds"], strict=True) if seeds == 1]
    if singles:
        have = f"{' and '.join(singles)} {'has' if len(singles) == 1 else 'have'} one run"
        found.append(f"That other training runs would show the same: {have}.")
    elif row["sd_over_seeds"] is not None and abs(row["mean"]) < row["sd_over_seeds"]:
        found.append(
            f"That one run of each would show it: the difference is smaller than the spread over seeds (standard "
            f"deviation {size(row['sd_over_seeds'], metric.unit)})."
        )
    more, fewer = (row["better"], row["worse"]) if better == row["first"] else (row["worse"], row["better"])
    if better and more < fewer:
        found.append(f"That {better} is better in most cases: it is in {more}, and worse in {fewer}.")
    if row["unpaired"]:
        found.append(f"Anything about {counted(row['unpaired'], 'case')} that not every run has a score of.")
    if row["p_methods_holm"] is not None and level_warning(min(row["seeds"])):
        found.append("That p over runs is exact: two runs are few.")
    if row["interval_warning"]:
        found.append("That the interval is exact (see the notes).")
    return found


def _failures(metric: Metric, methods: Methods, worse: str) -> list[str]:
    """What labels weigh in the means that only one of the maps has."""
    told = {name: words for name, counts in methods.items() if (words := failures(counts))}
    if not told:
        return []
    value = "the metric's rules say"
    if metric.one_absent == "diagonal":
        value = "the image's diagonal, the largest distance there is"
    elif metric.one_absent is not None:
        value = f"{metric.one_absent:g} {metric.unit}".strip()
        value += ", the worst value" if value == "0" else ""
    if list(told) == [worse] and not methods[worse]["false"]:
        return [f"That {worse} is worse where it predicts: its mean counts {told[worse]} as {value}."]
    each = "; ".join(f"{name}: {words}" for name, words in told.items())
    return [f"That it is so where both maps have a label: the means count others as {value} ({each})."]


def failures(counts: Mapping[str, Any]) -> str:
    """Missed and false labels and cases without a prediction, in words; empty where there is none."""
    missed, false, unpredicted = counts["missed"], counts["false"], counts["unpredicted"]
    without = f"{counted(unpredicted, 'case')} without a prediction" if unpredicted else ""
    theirs = counts["missed_unpredicted"]
    parts = [f"{without} ({counted(theirs, 'missed label')})" if theirs else without]
    parts += [counted(missed - theirs, "other missed label" if theirs else "missed label")] if missed > theirs else []
    parts += [counted(false, "false label")] if false else []
    *first, last = [part for part in parts if part] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _why(row: Mapping[str, Any], over: str) -> str:
    """What keeps networks that differ from showing that the methods do."""
    if row["p_mean_holm"] is not None and row["p_mean_holm"] < LEVEL:
        return "runs of one method differ so much that their choice may explain it"
    p = p_value(row["p_mean_holm"], "p")
    return (
        f"the mean is not sure over {over}s alone either ({p}, Student's t); a few of them may weigh as much as the "
        f"rest"
    )


def _networks(row: Mapping[str, Any], name: str) -> str:
    several = row["seeds"][0 if name == row["first"] else 1] > 1
    return f"The trained networks of {name} are" if several else f"The trained network of {name} is"


def _those(row: Mapping[str, Any], name: str) -> str:
    return f"{'those' if row['seeds'][0 if name == row['first'] else 1] > 1 else 'that'} of {name}"


def _interval(row: Mapping[str, Any], metric: Metric, direction: float, over: str) -> str:
    """In words; of second minus first where the `direction` is negative."""
    if row["interval"] is None:
        return "one patient, no interval"
    runs = " and runs" if min(row["seeds"]) > 1 else ""
    ends = sorted(-end if direction < 0 else end for end in row["interval"])
    low, high = (signed(end, metric.unit, decimals_of(row, metric.unit)) for end in ends)
    return f"95 % interval over {over}s{runs} {low} to {high}"
