"""The command `maskmed-zoo`: verbs, each in a module of its own that is imported on use.

Exit code 0: done; 1: a failure; 2: a user's mistake, reported in one line per problem on standard error; as in a shell
130: interrupted by Ctrl-C; 143: ended by SIGTERM or SIGUSR1, or training that a signal stopped; 141: nobody read
standard output to the end.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from maskmed_zoo.cli.output import NobodyReadsError, printing, settle, usable_streams
from maskmed_zoo.errors import (
    INTERRUPTED,
    TERMINATED,
    ArgumentError,
    StoppedError,
    UserError,
    ZooError,
    first_line,
    nearest,
    printable,
    reason_of,
)
from maskmed_zoo.memory import REMEDY, is_exhausted
from maskmed_zoo.version import __version__

PIPE_CLOSED = 141
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""What schedulers send some time before they kill."""
VERBS = {
    "list": "names of components and models",
    "describe": "the facts about one of them",
    "validate": "check a recipe",
    "schema": "the JSON Schema of recipes, for editors",
    "copy": "a recipe of your own, from one built in",
    "plan": "a recipe for a data set, each number explained",
    "build": "what a recipe's network is made of",
    "data": "check a data set, every case of it",
    "train": "train a recipe on a data set",
    "predict": "segment images with a trained run",
    "evaluate": "score a run, or a folder of label maps",
    "postprocess": "choose what is done with label maps",
    "compare": "methods on the same cases, and what follows",
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
    usable_streams()
    _show_log()
    try:
        with _termination_raised():
            _run(words or ["--help"])
    except (ZooError, _TerminatedError) as error:
        is_ended = isinstance(error, StoppedError | _TerminatedError)
        return _fail(str(error), TERMINATED if is_ended else 2 if isinstance(error, UserError) else 1)
    except NobodyReadsError:
        return PIPE_CLOSED
    except (MemoryError, RuntimeError) as error:
        if not is_exhausted(error):
            raise
        return _fail(f"{words[0]} needs more memory than there is ({first_line(error)}); {REMEDY}", 1)
    except OSError as error:
        place = error.filename or words[0]
        return _fail(f"{printable(str(place))}: cannot be read or written ({reason_of(error)})", 1)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted", INTERRUPTED)
    finally:
        settle(sys.stderr)
    return 0


def _run(words: Sequence[str]) -> None:
    verb = words[0]
    if verb not in VERBS and not verb.startswith("-"):
        raise ArgumentError(f"no command '{verb}'{nearest(verb, VERBS)} (commands: {', '.join(VERBS)})")
    if verb not in VERBS:
        _top_parser().parse_args(words)
        return
    importlib.import_module(f"maskmed_zoo.cli.{verb}").run(parser_of(verb).parse_args(words[1:]))


class _TerminatedError(BaseException):
    """A signal of `ENDING`, wherever the program is; what is being written is cleaned up as after Ctrl-C."""


@contextmanager
def _termination_raised() -> Generator[None]:
    """Signals of `ENDING` end a command as Ctrl-C does, unless somebody has said what they are to do."""
    is_main = threading.current_thread() is threading.main_thread()
    ours = [number for number in ENDING if is_main and signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _terminated)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _terminated(number: int, _: object) -> NoReturn:
    raise _TerminatedError(f"ended by {signal.Signals(number).name}")


class _Parser(argparse.ArgumentParser):
    """One that says where help cannot be printed, and whose errors quote control characters as escapes."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:
            with printing():
                file.write(message)
        else:
            with suppress(OSError):
                sys.stderr.write(message)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{printable(f'{self.prog}: {message}')}; '{self.prog} --help' tells more\n")


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of one command; made without importing what the command runs."""
    module = importlib.import_module(f"maskmed_zoo.cli.{verb}")
    parser = _Parser(prog=f"maskmed-zoo {verb}", description=module.__doc__, allow_abbrev=False)
    module.configure(parser)
    return parser


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {text}" for verb, text in VERBS.items())
    parser = _Parser(
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
    with suppress(OSError):  # where nobody can be told, the exit code does
        sys.stderr.write(f"{message}\n")
    return code


class _Log(logging.Handler):
    """Warnings of this package on standard error, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it; control characters of what it quotes are escapes."""
        with suppress(OSError):
            sys.stderr.write("".join(f"{printable(line)}\n" for line in record.getMessage().split("\n")))


def _show_log() -> None:
    log = logging.getLogger("maskmed_zoo")
    if not any(isinstance(handler, _Log) for handler in log.handlers):
        log.addHandler(_Log(logging.WARNING))
