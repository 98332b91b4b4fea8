"""`ablate`: every cell of an ablation once, however often and from however many processes it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maskmed_zoo.ablation.plan import Ablation
from maskmed_zoo.ablation.tables import summarize_ablation, write_scores, write_tables
from maskmed_zoo.files import UNFINISHED, make_folder, remove_abandoned
from maskmed_zoo.lock import locked
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.jobs import refuse_torchrun, work_through


def ablate(
    ablation: Ablation,
    *,
    display: Display | None = None,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run the cells that are neither finished nor in the hands of another process; returns the summary.

    Tables are written, and `show` is called with the summary, before the first cell and after each. A cell that fails
    is reported and left for the next call; the others continue.
    """
    refuse_torchrun()
    display = display or Display()
    make_folder(ablation.out / "cells")
    remove_abandoned(ablation.out, f"{UNFINISHED}*")

    def tables() -> dict[str, Any]:
        """Write and show what there is by now."""
        with locked(ablation.out / "cells" / "tables.lock", wait=True):
            summary = summarize_ablation(ablation)
            write_tables(summary, ablation.out)
            write_scores(ablation, ablation.out)
        if show is not None:
            show(summary)
        return summary

    tables()
    work_through(ablation.cells, ablation.task, display.say, tables)
    return tables()
