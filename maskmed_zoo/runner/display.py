"""What a person sees while work goes on: bars with time left on a terminal, one line per task elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from maskmed_zoo.errors import escaped


class PlainConsole(Console):
    """A console that shows text as it is: no markup, no emoji, and control characters as escapes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:  # of what is printed, and of cells and titles of tables
        return super().render_str("\n".join(map(escaped, text.split("\n"))), **settings)

    def on_broken_pipe(self) -> None:
        """Nothing: whoever prints says what that means."""
        raise BrokenPipeError


class Display:
    """Progress on a rich console (standard error by default); `quiet`: none."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or PlainConsole(stderr=True, quiet=quiet)

    def say(self, text: str) -> None:
        """One line; work goes on where nobody can be told, as on a full disk or in a closed terminal."""
        with suppress(OSError, ValueError):
            self.console.print(escaped(text), highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, title: str) -> Generator[Callable[[int, int], None]]:
        """Progress of `title`; the function given takes (done, total)."""
        with self._bars() as bars:
            task = bars.add_task(escaped(title), total=None)

            def show(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total)
                if done == total and not self.console.is_terminal:
                    self.say(f"{title}: {total}")

            yield show

    def _bars(self) -> Progress:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self.console, disable=not self.console.is_terminal)
