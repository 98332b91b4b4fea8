"""What several commands share: writing to standard output, and arguments of the same meaning."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from maskmed_zoo.errors import OutputError, escaped
from maskmed_zoo.files import unwritable

if TYPE_CHECKING:
    from rich.console import RenderableType


class NobodyReadsError(Exception):
    """Standard output is a pipe that its reader has closed, as `head` does when it has enough."""


def write(text: str) -> None:
    """One line of plain text; control characters are escapes."""
    with printing():
        sys.stdout.write(f"{escaped(text)}\n")


def write_text(text: str) -> None:
    """Lines as they are; control characters are escapes."""
    with printing():
        sys.stdout.write("".join(f"{escaped(line)}\n" for line in text.removesuffix("\n").split("\n")))


def write_new(target: Path, text: str) -> None:
    """Make a file that was not there, and leave none where it cannot be written whole; raises `OutputError`."""
    try:
        file = target.open("x", encoding="utf-8")
    except FileExistsError as error:
        raise OutputError(f"{target}: exists already; give another name") from error
    except (OSError, ValueError) as error:
        raise unwritable(target, error) from error
    try:
        with file:
            file.write(text)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise unwritable(target, error) from error


def write_json(content: Any) -> None:
    """One JSON document; characters that no terminal shows are escapes of JSON."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=not is_unicode)
    with printing():
        sys.stdout.write("".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text) + "\n")


def render(*parts: RenderableType) -> None:
    """Tables and styled text; lines are not cut where the output is no terminal."""
    from maskmed_zoo.runner.display import PlainConsole

    console = PlainConsole(width=None if sys.stdout.isatty() else 140)
    with printing():
        for part in parts:
            console.print(part, highlight=False)


@contextmanager
def printing() -> Generator[None]:
    """Print, and know that it arrived; raises `OutputError` where it cannot, `NobodyReadsError` where nobody reads."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        settle(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise NobodyReadsError from error
        raise OutputError(f"standard output: cannot be written ({error.strerror}); check where it goes") from error


def usable_streams() -> None:
    """Standard output and error of any kind: closed ones lead nowhere, and what they cannot encode is escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def settle(stream: TextIO) -> None:
    """Write what is left in a buffer, or let it go nowhere: Python would complain about it once more when it ends."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def add_metrics(parser: argparse.ArgumentParser, default: str = "") -> None:
    """`--metrics`, with the names of all that there are."""
    parser.add_argument(
        "--metrics",
        metavar="NAMES",
        help="further metrics than Dice, by name and separated by commas"
        f"{f' ({default})' if default else ''}: {', '.join(_metric_names())}",
    )


def _metric_names() -> list[str]:
    """By the files that declare them: importing these would take longer than help should."""
    folder = Path(__file__).resolve().parents[1] / "evaluation" / "metrics"
    return sorted(path.stem for path in folder.glob("*.py") if "\nMETRIC = " in path.read_text(encoding="utf-8"))


def names_of(text: str | None) -> list[str]:
    """Names with commas between them, and perhaps spaces."""
    return [name for part in (text or "").split(",") if (name := part.strip())]


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`, a switch."""
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def add_recipe(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """`RECIPE` and `--set`."""
    parser.add_argument(
        "recipe",
        nargs="?" if optional else None,
        metavar="RECIPE",
        help="a model's name ('maskmed-zoo list --kind model'), or the path of a recipe (.yaml)",
    )
    add_set(parser)


def add_set(parser: argparse.ArgumentParser, of: str = "the recipe", example: str = "train.epochs=10") -> None:
    """`--set`, which overrides values `of` something."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="A.B=C",
        help=f"override a value of {of}, C being YAML, for example {example}; repeatable",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`."""
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps, … (default: cuda if there, else cpu)")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """`--weights`."""
    parser.add_argument(
        "--weights", choices=("last", "best"), default="last", help="which checkpoint (default: %(default)s)"
    )


def add_moved_data(parser: argparse.ArgumentParser) -> None:
    """`--data`, for a run that knows where its data sets were."""
    parser.add_argument(
        "--data",
        action="append",
        metavar="DIR",
        help="where the run's data set is now, if it has moved; repeatable, in the order of the training",
    )
