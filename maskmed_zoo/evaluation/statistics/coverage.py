"""How often a 95 % interval holds what it speaks of, as simulated; and the words where that is too seldom.

Source: `docs/benchmarks/intervals.csv`, the lowest share over its scenes. A test holds this table to that file.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["mean", "difference"]
ENOUGH = 0.93
"""Share from which nothing is said."""
MEASURED: dict[Kind, dict[int, dict[int, float]]] = {
    "mean": {
        10: {1: 0.917, 2: 0.929, 3: 0.945, 5: 0.935},
        25: {1: 0.928, 2: 0.953, 3: 0.95, 5: 0.945},
        100: {1: 0.95, 2: 0.945, 3: 0.958, 5: 0.939},
    },
    "difference": {
        5: {1: 0.934, 2: 0.972, 3: 0.95, 5: 0.935},
        10: {1: 0.94, 2: 0.95, 3: 0.947, 5: 0.936},
        25: {1: 0.953, 2: 0.945, 3: 0.949, 5: 0.948},
        100: {1: 0.949, 2: 0.94, 3: 0.948, 5: 0.946},
    },
}
"""Kind to cases to runs to the share that held the truth: of these networks for one run, else of methods."""
ONE_RUN = {10: 0.231, 25: 0.521, 100: 0.835}
"""Cases to the largest share of simulations in which, at a level of 5 %, at least one of the three pairs of three equal
methods was told apart, by one run each."""
TWO_RUNS = 0.075
"""The same of the test over cases and runs with two runs each."""


def shortfall(kind: Kind, patients: int, runs: int = 1) -> str | None:
    """A sentence where intervals over so many patients and runs hold the truth in less than 93 %; else None."""
    known = MEASURED[kind]
    cases = max((n for n in known if n <= patients), default=None)
    if cases is None:
        return f"With {patients} patients a 95 % interval may hold less than it says; so few were not simulated."
    row = known[cases]
    share = row[max((n for n in row if n <= runs), default=min(row))]
    if share >= ENOUGH:
        return None
    return (
        f"With {patients} cases{f' and {runs} runs' if runs > 1 else ''} these 95 % intervals held the "
        f"truth in as few as {100 * share:.1f} % of simulations: read them as wider."
    )


def told_apart(patients: int) -> str:
    """How often single runs of equal methods differ over so many patients, in a sentence; empty for fewer than ten."""
    cases = max((n for n in ONE_RUN if n <= patients), default=None)
    if cases is None:
        return ""
    return (
        f"Single runs differ by chance too: among three equal methods of one run each, the test over {cases} cases "
        f"told two apart in up to {100 * ONE_RUN[cases]:.0f} % of simulations."
    )


def level_warning(runs: int) -> str | None:
    """A sentence where the test over cases and runs says too often that equal methods differ; else None."""
    if runs != 2:
        return None
    return (
        f"With two runs the test over cases and runs told at least one of three pairs of equal methods apart in up to "
        f"{100 * TWO_RUNS:.1f} % of simulations, not 5 %; three runs or more are safer."
    )
