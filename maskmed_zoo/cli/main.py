"""The command `maskmed-zoo`: verbs, each in a module of its own that is imported on use.

Exit code 0: done; 1: a failure; 2: a user's mistake, reported in one line per problem on standard error.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from maskmed_zoo.errors import UserError, ZooError, first_line, nearest
from maskmed_zoo.memory import REMEDY, is_exhausted
from maskmed_zoo.version import __version__

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
    if not words or words[0].startswith("-"):
        _top_parser().parse_args(words or ["--help"])
        return 0
    verb = words[0]
    if verb not in VERBS:
        return _fail(f"no command '{verb}'{nearest(verb, VERBS)} (commands: {', '.join(VERBS)})", 2)
    try:
        importlib.import_module(f"maskmed_zoo.cli.{verb}").run(parser_of(verb).parse_args(words[1:]))
    except ZooError as error:
        return _fail(str(error), 2 if isinstance(error, UserError) else 1)
    except (MemoryError, RuntimeError) as error:
        if not is_exhausted(error):
            raise
        return _fail(f"{verb} needs more memory than there is ({first_line(error)}); {REMEDY}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return 0


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
    sys.stderr.write(f"{message}\n")
    return code
