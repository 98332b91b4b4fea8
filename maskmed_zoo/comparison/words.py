"""What follows from a difference, and what does not, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskmed_zoo.comparison.numbers import counted, p_value, signed, size
from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.statistics.coverage import level_warning, told_apart
from maskmed_zoo.evaluation.statistics.holm import LEVEL


def sentences(row: Mapping[str, Any], metric: Metric) -> dict[str, list[str]]:
    """Keys `follows` and `does_not_follow` of a row of differences over all labels."""
    if row["mean"] is None:
        nothing = f"Nothing: no case has a score of both {row['first']} and {row['second']}."
        return {"follows": [nothing], "does_not_follow": []}
    first, second, better, worse = row["first"], row["second"], row["first"], row["second"]
    if (row["mean"] > 0) != metric.higher_is_better:
        better, worse = worse, better
    by = f"by {size(row['mean'], metric.unit)} ({_interval(row, metric, row['mean'])})"
    tested = row["p_methods_holm"] is not None
    differ, methods = row["p_holm"] < LEVEL, tested and row["p_methods_holm"] < LEVEL
    networks = differ and row["interval"] is not None and row["interval"][0] * row["interval"][1] > 0
    seen = f"{first} minus {second} is {signed(row['mean'], metric.unit)} ({_interval(row, metric, 1)})"
    p, p_methods = p_value(row["p_holm"], "p"), p_value(row["p_methods_holm"], "p")
    limits: list[str] = []
    if methods:
        follows = (
            f"{better} is better than {worse} in {metric.title}, {by}; {p_methods} over other cases and other training "
            f"runs."
        )
        limits.append("That it holds for cases of another kind, or for every label: see the rows by label.")
    elif differ and tested:
        follows = (
            f"The trained networks of {first} and {second} differ in {metric.title} over other cases ({p}); {seen}."
        )
        limits.append(f"That one is the better method ({p_methods} over cases and runs): {_why(row)}.")
    elif networks:
        follows = (
            f"{_networks(row, better)} better than {_those(row, worse)} in {metric.title}, {by}; {p} over other cases."
        )
    elif differ:
        follows = (
            f"The trained networks of {first} and {second} differ in {metric.title} over other cases ({p}), but not "
            f"surely in the mean: {seen}. {first} is better in {counted(row['better'], 'case')} and worse in "
            f"{row['worse']}."
        )
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
        "does_not_follow": [*limits, *_limits(row, metric, better if methods or (networks and not tested) else None)],
    }


def _limits(row: Mapping[str, Any], metric: Metric, better: str | None) -> list[str]:
    """What holds against every reading of the row; `better` is what it says is better, if it says so."""
    found: list[str] = []
    singles = [name for name, seeds in zip((row["first"], row["second"]), row["seeds"], strict=True) if seeds == 1]
    if singles:
        have = f"{' and '.join(singles)} {'has' if len(singles) == 1 else 'have'} one run"
        found.append(f"That other training runs would show the same: {have}. {told_apart(row['patients'])}".rstrip())
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
    if row["p_methods_holm"] is not None and (warning := level_warning(min(row["seeds"]))):
        found.append(f"That p over runs is exact. {warning}")
    if row["interval_warning"]:
        found.append(f"That the interval is exact. {row['interval_warning']}")
    return found


def _why(row: Mapping[str, Any]) -> str:
    """What keeps networks that differ from showing that the methods do."""
    if row["p_mean_holm"] is not None and row["p_mean_holm"] < LEVEL:
        return "runs of one method differ so much that their choice may explain it"
    p = p_value(row["p_mean_holm"], "p")
    return (
        f"the mean is not sure over cases alone either ({p}, Student's t); a few of them may weigh as much as the rest"
    )


def _networks(row: Mapping[str, Any], name: str) -> str:
    several = row["seeds"][0 if name == row["first"] else 1] > 1
    return f"The trained networks of {name} are" if several else f"The trained network of {name} is"


def _those(row: Mapping[str, Any], name: str) -> str:
    return f"{'those' if row['seeds'][0 if name == row['first'] else 1] > 1 else 'that'} of {name}"


def _interval(row: Mapping[str, Any], metric: Metric, direction: float) -> str:
    """In words; of second minus first where the `direction` is negative."""
    if row["interval"] is None:
        return "one patient, no interval"
    over = "cases and runs" if min(row["seeds"]) > 1 else "cases"
    ends = sorted(-end if direction < 0 else end for end in row["interval"])
    low, high = (signed(end, metric.unit) for end in ends)
    return f"95 % interval over {over} {low} to {high}"
