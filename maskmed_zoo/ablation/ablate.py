"""`ablate`: every cell of an ablation once, however often and from however many processes it is called."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import IO, Any

from maskmed_zoo.ablation.cell import Cell, run_in_process
from maskmed_zoo.ablation.plan import Ablation
from maskmed_zoo.ablation.tables import summarize_ablation, write_tables
from maskmed_zoo.evaluation.aggregate import headline
from maskmed_zoo.files import UNFINISHED, make_folder, remove_abandoned, write_text
from maskmed_zoo.lock import locked
from maskmed_zoo.runner.display import Display


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
    display = display or Display()
    make_folder(ablation.out / "cells")
    for folder in (ablation.out, ablation.out / "cells"):
        remove_abandoned(folder, f"{UNFINISHED}*")
    work = _Work(ablation, display, show or (lambda _: None))
    while work.one_pass():
        pass
    return work.tables()


class _Work:
    """The loop's state: which failures are older than it."""

    def __init__(
        self,
        ablation: Ablation,
        display: Display,
        show: Callable[[dict[str, Any]], None],
    ) -> None:
        self.ablation, self.display, self.show = ablation, display, show
        self.cells = list({cell.run.path: cell for cell in ablation.cells}.values())
        self.old_failures = {cell.run.path: _changed(cell) for cell in self.cells}
        self.tables()

    def one_pass(self) -> bool:
        """Every free cell in turn; whether there was one."""
        did_any = False
        for cell in self.cells:
            if self._is_settled(cell):
                continue
            with locked(cell.lock) as lock:
                if lock is None or self._is_settled(cell):  # by another process, a moment ago
                    continue
                self._run(cell, lock)
            self.tables()
            did_any = True
        return did_any

    def tables(self) -> dict[str, Any]:
        """Write and show what there is by now."""
        with locked(self.ablation.out / "cells" / "tables.lock", wait=True):
            summary = summarize_ablation(self.ablation)
            write_tables(summary, self.ablation.out)
        self.show(summary)
        return summary

    def _is_settled(self, cell: Cell) -> bool:
        """Finished, or failed since this process began, here or elsewhere."""
        return cell.scores() is not None or _changed(cell) not in (None, self.old_failures[cell.run.path])

    def _run(self, cell: Cell, lock: IO[str]) -> None:
        title, start = f"row '{cell.row}', seed {cell.seed}", time.perf_counter()
        self.display.say(f"{title}: in {cell.run.path}, log {cell.log.name}")
        cell.failed.unlink(missing_ok=True)
        failure = run_in_process(cell, self.ablation.task, lock)
        scores = cell.scores()
        if failure is not None or scores is None:
            write_text(cell.failed, f"{failure}\n")
            self.display.say(f"{title}: failed: {failure}")
        else:
            score = headline(scores)
            dice = "–" if score is None else f"{score:z.4f}"
            self.display.say(f"{title}: mean Dice {dice}, {time.perf_counter() - start:.0f} s")


def _changed(cell: Cell) -> int | None:
    """When the cell's failure was written, ns; None if there is none."""
    try:
        return cell.failed.stat().st_mtime_ns
    except OSError:
        return None
