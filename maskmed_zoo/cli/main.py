"""The command `maskmed-zoo`: verbs, each in a module of its own that is imported on use.

Exit code 0: done; 1: a failure; 2: a user's mistake, reported in one line per problem on standard error.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from maskmed_zoo.errors import UserError, ZooError, nearest, printable
from maskmed_zoo.version import __version__

FIRST_FILE = 3
"""Number of the first file that is no standard stream."""
VERBS = {
    "list": "names of components and models",
    "describe": "the facts about one of them",
    "validate": "check a recipe",
    "schema": "the JSON Schema of recipes, for editors",
    "copy": "a recipe of your own, from one built in",
    "build": "what a recipe's network is made of",
    "train": "train a recipe on a data set",
    "predict": "segment images with a trained run",
    "evaluate": "score a run, or a folder of label maps",
    "explain": "what a run's queries are and where they look",
    "ablate": "train and compare the rows of a grid",
    "export": "a run's weights with a card, for others",
    "pull": "weights from an address or the hub, checked",
    "push": "exported weights to the hub",
    "nnunet": "trainers for nnU-Net v2",
    "demo": "a data set, a training run and a picture in minutes",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    if not words or words[0].startswith("-"):
        _top_parser().parse_args(words or ["--help"])
        return 0
    verb = words[0]
    if verb not in VERBS:
        return _fail(f"no command '{verb}'{nearest(verb, VERBS)} (commands: {', '.join(VERBS)})", 2)
    try:
        importlib.import_module(f"maskmed_zoo.cli.{verb}").run(parser_of(verb).parse_args(words[1:]))
        sys.stdout.flush()
    except (ZooError, KeyboardInterrupt, OSError) as error:
        return _ended(error)
    return 0


def _ended(error: BaseException) -> int:
    """Say in one line why a command ended; returns its exit code."""
    if isinstance(error, ZooError):
        return _fail(str(error), 2 if isinstance(error, UserError) else 1)
    if isinstance(error, KeyboardInterrupt):
        return _fail("interrupted", 130)
    _give_up_output()
    if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough, as 'head' has
        return 1
    place = printable(str(getattr(error, "filename", None) or "standard output"))
    return _fail(f"{place}: cannot be read or written ({getattr(error, 'strerror', None) or error})", 1)


def _open_streams() -> None:
    """Let what is written to a closed standard stream go nowhere, and no file that is opened take its number."""
    with suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) < FIRST_FILE:
            pass
        os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  for all that comes


def _give_up_output() -> None:
    """Standard output takes nothing more, also not what Python would write to it at the end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of one command; made without importing what the command runs."""
    module = importlib.import_module(f"maskmed_zoo.cli.{verb}")
    parser = argparse.ArgumentParser(prog=f"maskmed-zoo {verb}", description=module.__doc__, allow_abbrev=False)
    module.configure(parser)
    return parser


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {text}" for verb, text in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="maskmed-zoo",
        description="A component zoo for 3-D medical image segmentation.",
        epilog=f"commands:\n{verbs}\n\n'maskmed-zoo COMMAND --help' tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="maskmed-zoo [--help] [--version] COMMAND …",
    )
    parser.add_argument("--version", action="version", version=f"maskmed-zoo {__version__}")
    return parser


def _fail(message: str, code: int) -> int:
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{message}\n")
    return code
