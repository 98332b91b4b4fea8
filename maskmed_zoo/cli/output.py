"""What several commands share: writing to standard output, and arguments of the same meaning."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


def write(text: str) -> None:
    """One line of plain text."""
    sys.stdout.write(f"{text}\n")


def write_json(content: Any) -> None:
    """One JSON document."""
    write(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False))


def render(*parts: RenderableType) -> None:
    """Tables and styled text; lines are not cut where the output is no terminal."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140, markup=False)
    for part in parts:
        console.print(part, highlight=False)


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`, a switch."""
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """`RECIPE` and `--set`."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a model's name ('maskmed-zoo list --kind model'), or the path of a recipe (.yaml)",
    )
    add_set(parser)


def add_set(parser: argparse.ArgumentParser, of: str = "the recipe") -> None:
    """`--set`, which overrides values `of` something."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="A.B=C",
        help=f"override a value of {of}, C being YAML, for example train.epochs=10; repeatable",
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
