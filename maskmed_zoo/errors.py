"""The exception tree: a user's mistake is a `UserError` (exit code 2), anything else a failure (exit code 1).

Every message is one line that says what is wrong, where, what was expected and what to do. What it quotes, names, keys,
values, may come from anywhere, so control characters are shown as escapes, and no line is longer than a page.
"""

from __future__ import annotations

import difflib
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from itertools import accumulate

LONGEST = 2000
"""Characters of a line."""
INTERRUPTED, TERMINATED = 130, 143
"""Exit codes, as in a shell: of what Ctrl-C ended, and of what another signal did."""
LONGEST_NAME = 255
"""Characters of a name that anything may be called by; to compare longer ones takes minutes."""


def printable(text: str) -> str:
    """One line as a terminal can show it: control characters as escapes, the middle left out where it is too long."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    return escaped(text)


def escaped(text: str) -> str:
    """One line, however long, with control characters as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class ZooError(Exception):
    """Base of all errors raised on purpose by this package."""

    def __str__(self) -> str:
        return "\n".join(map(printable, super().__str__().split("\n")))


class UserError(ZooError):
    """Bad input: a recipe, a name, a file, a data set. The command line prints it and exits with 2."""


class RegistryError(UserError):
    """A name that is unknown, ambiguous, registered twice, or a card that contradicts its code."""


class RecipeError(UserError):
    """A recipe that cannot be read; holds every problem found, one line each."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class JointError(UserError):
    """Two components that do not fit, or an input that does not fit the model."""


class DataError(UserError):
    """A data set, an image or a label map that cannot be used as it is; one line, whatever its names hold."""

    def __str__(self) -> str:
        return printable(Exception.__str__(self))


class SeveralError(DataError):
    """Several cases that cannot be used, a line each."""

    def __str__(self) -> str:
        return ZooError.__str__(self)


class CheckpointError(UserError):
    """A run folder or a checkpoint that is missing, broken or belongs to another recipe."""


class OutputError(UserError):
    """A file or folder that cannot be written."""


class ArgumentError(UserError):
    """A value given to a function of this package, or an option, that cannot be used."""


class NonFiniteError(ZooError):
    """NaN or infinity where a number was due; names the tensor."""


class MemoryShortageError(UserError):
    """Less memory than a step or a case needs."""


class WorkerError(ZooError):
    """A process at work for this one that crashed."""


class PeerError(ZooError):
    """A process that trained the same run and is gone."""


class StoppedError(ZooError):
    """Training that was told to stop and has saved its state; `by` names what told it, SIGTERM as a rule."""

    def __init__(self, message: str, *, by: str) -> None:
        self.by = by
        super().__init__(message)


class FoundError(ZooError):
    """What a check was looking for, and found."""


class Failures:
    """What went wrong with single cases of many, kept until the others are done."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._kinds: set[type[UserError]] = set()

    @contextmanager
    def kept(self) -> Generator[None]:
        """Keep a case's `DataError` or `MemoryShortageError`; anything else, such as a full disk, ends the work."""
        try:
            yield
        except (DataError, MemoryShortageError) as error:
            self._kinds.add(type(error))
            self.lines += str(error).split("\n")  # not the error itself: it holds on to the arrays of its case

    def take(self, others: Iterable[Failures]) -> None:
        """Those of the same work elsewhere."""
        for other in others:
            self._kinds |= other._kinds
            self.lines += other.lines

    def tell(self, cases: int, others: str, *, in_one_line: bool = False) -> None:
        """Raise a `DataError` with a line for each, of so many `cases`, and what became of the `others`.

        A `MemoryShortageError` where every one of them was that.

        One line holds as many as there is place for, and says how many more there are.
        """
        failed = len(self.lines)
        if not failed:
            return
        if failed == 1 or in_one_line:
            shown = max(1, sum(length < LONGEST * 3 // 4 for length in accumulate(map(len, self.lines))))
            more = f"; and {failed - shown} more like these" if shown < failed else ""
            rest = f" ({failed} of {cases} cases; {others})" if cases > 1 else ""
            kind = MemoryShortageError if self._kinds == {MemoryShortageError} else DataError
            raise kind(f"{'; '.join(self.lines[:shown])}{more}{rest}")
        last = [f"{failed} of {cases} cases cannot be used; {others}"] if failed < cases else []
        kind = MemoryShortageError if self._kinds == {MemoryShortageError} else SeveralError
        raise kind("\n".join([*self.lines, *last]))


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name nearest to `name`, or an empty string; what follows needs a `;`."""
    if len(name) > LONGEST_NAME:
        return ""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def reason_of(error: BaseException) -> str:
    """What the operating system says, in its words alone, or any other error in a line."""
    return getattr(error, "strerror", None) or first_line(error)


def first_line(error: BaseException, limit: int = 160) -> str:
    """What somebody else's error says, in one line of at most `limit` characters; its class where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0][:limit] if text else type(error).__name__
