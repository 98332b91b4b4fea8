"""The tables of a comparison: the same cells for terminal, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskmed_zoo.comparison.numbers import decimals, decimals_of, interval, number, p_value

COUNTS = {"missed": "missed", "false": "false", "unpredicted": "no prediction"}
"""Of labels and cases, and their headings; columns of those that there are."""
COST_HEADINGS = {
    "parameters": ("parameters", lambda value: f"{value:,.0f}"),
    "macs": ("GMACs", lambda value: f"{value / 1e9:,.1f}"),
    "seconds_per_case": ("s per case", lambda value: f"{value:,.2f}"),
    "peak_memory_bytes": ("peak MiB, training", lambda value: f"{value / 2**20:,.0f}"),
    "training_seconds": ("training, s", lambda value: f"{value:,.0f}"),
}  # fmt: skip


@dataclass(frozen=True)
class TextTable:
    """Cells as text; the first `words` columns are words, the others numbers."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    words: int = 1


def tables_of(comparison: Mapping[str, Any], *, labels: bool = True) -> dict[str, list[TextTable]]:
    """Of each metric by name: its methods, their differences and, with `labels`, both by label."""
    return {name: [*_tables(table, labels)] for name, table in comparison["metrics"].items()}


def cost_table(comparison: Mapping[str, Any]) -> TextTable | None:
    """What the methods cost; None where nothing is known of any."""
    methods = comparison["methods"]
    known = [key for key in COST_HEADINGS if any(method["costs"][key] is not None for method in methods)]
    if not known:
        return None
    shown = {key: COST_HEADINGS[key][1] for key in known}
    rows = [(method["name"], *(_cost(method["costs"], key, show) for key, show in shown.items())) for method in methods]
    return TextTable("Costs", ("method", *(COST_HEADINGS[key][0] for key in known)), rows)


def _cost(costs: Mapping[str, Any], key: str, show: Any) -> str:
    """Peak memory with its kind: that of a card and of a process are no numbers to compare."""
    if costs[key] is None:
        return "–"
    kind = f" ({costs['memory']})" if key == "peak_memory_bytes" else ""
    return f"{show(costs[key])}{kind}"


def heading(table: Mapping[str, Any]) -> str:
    """A metric's title with its unit and direction."""
    unit = f", {table['unit']}" if table["unit"] else ""
    return f"{table['title']}{unit} ({'higher' if table['higher_is_better'] else 'lower'} is better)"


def _tables(table: Mapping[str, Any], labels: bool) -> Iterator[TextTable]:
    title, unit = heading(table), table["unit"]
    counts = [count for count in COUNTS if any(method["all"][count] for method in table["methods"].values())]
    headings = ("method", "runs", "mean", "95 %", "SD of runs", "rank", "kept in", *map(COUNTS.__getitem__, counts))
    rows = [
        (name, *_method(found, table, name), *_counts(found["all"], counts)) for name, found in table["methods"].items()
    ]
    yield TextTable(title, headings, rows)
    counts = [count for count in counts if count != "unpredicted"]
    headings = ("pair", "mean", "95 %", "p", "p, runs too", "better, equal, worse", "cases (runs)")
    rows = [(_pair(row), *_difference(row, unit)) for row in table["differences"]]
    yield TextTable("Differences, first minus second", headings, rows)
    if not labels:
        return
    rows = [
        (label, name, *_mean(found["labels"][label], unit), *_counts(found["labels"][label], counts))
        for label in next(iter(table["methods"].values()))["labels"]
        for name, found in table["methods"].items()
    ]
    by_label = ("label", "method", "mean", "95 %", "SD of runs", *map(COUNTS.__getitem__, counts))
    yield TextTable("By label", by_label, rows, words=2)
    rows = [(row["label"], _pair(row), *_difference(row, unit)) for row in table["label_differences"]]
    yield TextTable("Differences by label", ("label", *headings), rows, words=2)


def _method(found: Mapping[str, Any], table: Mapping[str, Any], name: str) -> tuple[str, ...]:
    ranks = table["ranks"]
    rank, kept = "–", "–"
    if ranks is not None:
        rank = str(ranks[name]["rank"])
        kept = f"{100 * ranks[name]['shares'][ranks[name]['rank'] - 1]:.0f} %"
    return str(found["all"]["seeds"]), *_mean(found["all"], table["unit"]), rank, kept


def _mean(found: Mapping[str, Any], unit: str) -> tuple[str, ...]:
    places = decimals([found["mean"], *(found["interval"] or ()), found["sd_over_seeds"]], unit)
    return number(found["mean"], places), interval(found["interval"], places), number(found["sd_over_seeds"], places)


def _counts(found: Mapping[str, Any], counts: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(found[count]) for count in counts)


def _pair(row: Mapping[str, Any]) -> str:
    return f"{row['first']} − {row['second']}"


def _difference(row: Mapping[str, Any], unit: str) -> tuple[str, ...]:
    places = decimals_of(row, unit)
    return (
        number(row["mean"], places, "+"),
        interval(row["interval"], places, "+"),
        p_value(row["p_holm"]),
        p_value(row["p_methods_holm"]),
        ", ".join(str(row[key]) for key in ("better", "equal", "worse")),
        f"{row['cases']} ({', '.join(map(str, row['seeds']))})",
    )
