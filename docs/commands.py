"""The command line's pages, from its parsers: what every command says of itself, how it is called, and its arguments.

The part of a command stands between the marks `<!-- train -->` and `<!-- end of train -->`; reference/cli.md includes
one part after the other, beside what no parser knows. Imports nothing that a command would run.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from maskmed_zoo.cli.main import VERBS, parser_of

# How often an argument may be given, by argparse's `nargs`.
TIMES = {None: "{}", "?": "[{}]", "*": "[{}…]", "+": "{}…"}


def page() -> str:
    """All parts, in the order of `maskmed-zoo --help`."""
    return "\n".join(line for verb in VERBS for line in part(verb))


def part(verb: str) -> list[str]:
    return [f"<!-- {verb} -->", "", *described(parser_of(verb)), f"<!-- end of {verb} -->", ""]


def described(parser: argparse.ArgumentParser) -> list[str]:
    """How a command is called, its description, its arguments, and the commands inside it."""
    lines = [f"`{usage(parser)}`", "", *markdown(parser.description or "").splitlines(), ""]
    for action in arguments(parser):
        if isinstance(action, argparse._SubParsersAction):
            lines += [line for inner in action.choices.values() for line in described(inner)]
        else:
            lines += [f"`{title(action)}`", f": {markdown((action.help or '') % vars(action))}", ""]
    return lines


def usage(parser: argparse.ArgumentParser) -> str:
    """What has to be given; the options that need not be are named in one word."""
    found = list(arguments(parser))
    words = [title(action) for action in found if not action.option_strings]
    words += [title(action) for action in found if action.option_strings and action.required]
    words += ["[options]"] if any(action.option_strings and not action.required for action in found) else []
    return " ".join([parser.prog, *words])


def arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All but `--help`, in the order in which the parser got them."""
    yield from (action for action in parser._actions if not isinstance(action, argparse._HelpAction))


def title(action: argparse.Action) -> str:
    """`INPUT…`, `--resume`, `--fold N`, `--weights last|best`."""
    value = action.metavar or "|".join(action.choices or ())
    if not action.option_strings:
        return TIMES[None if isinstance(action, argparse._SubParsersAction) else action.nargs].format(value)
    value = f"[{value}]" if action.nargs == "?" else value if action.nargs != 0 else ""
    return f"{', '.join(action.option_strings)} {value}".rstrip()


def markdown(text: str) -> str:
    """Help text with 'quoted words' and --options as code, and no emphasis by accident."""
    pieces = re.split(r"(?<!\w)'([^']+)'(?!\w)|(?<![\w-])(--[a-z][a-z-]*)", text.strip())
    # Of three pieces each, one is text, and one or none of the other two is code.
    return "".join(
        f"`{piece}`" if index % 3 else piece.replace("*", "\\*") for index, piece in enumerate(pieces) if piece
    )
