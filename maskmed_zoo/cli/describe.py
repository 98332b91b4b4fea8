"""Show the card of a component or model."""

from __future__ import annotations

import argparse

from maskmed_zoo import registry
from maskmed_zoo.cli.output import add_json, render, write_json


def configure(parser: argparse.ArgumentParser) -> None:
    """The name, and whether the card is printed as JSON."""
    parser.add_argument("name", metavar="NAME", help="of a component or a model ('maskmed-zoo list')")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Print the card's facts."""
    facts = registry.card(args.name).to_json()
    if args.json:
        write_json(facts)
        return
    from rich.table import Table

    table = Table(box=None, show_header=False)
    for key, value in facts.items():
        table.add_row(key, str(value))
    render(table)
