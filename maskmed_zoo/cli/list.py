"""List components and models by name, with shell wildcards."""

from __future__ import annotations

import argparse

from maskmed_zoo import registry
from maskmed_zoo.cli.output import add_json, render, write_json


def configure(parser: argparse.ArgumentParser) -> None:
    """The wildcard, the kind, and whether the cards are printed as JSON."""
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        metavar="PATTERN",
        help="names to list; * stands for any text, ? for one character: quote it, '*amos*' (default: all)",
    )
    parser.add_argument("--kind", metavar="K", help=f"one of {', '.join(registry.KINDS)}")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Print one row per card."""
    cards = registry.find(args.pattern, kind=args.kind)
    if args.json:
        write_json([card.to_json() for card in cards])
        return
    from rich.table import Table

    table = Table("name", "kind", "what it is", box=None)
    for card in cards:
        table.add_row(card.name, card.kind, card.summary)
    render(table if cards else f"nothing matches '{args.pattern}'")
