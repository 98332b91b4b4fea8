"""Build a recipe's network without data: check the joints, show levels, stages, parameters and MACs for its patch.

Nothing is computed and no memory is taken for weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from maskmed_zoo.cli.output import add_json, add_recipe, render, write_json

if TYPE_CHECKING:
    from rich.table import Table


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe, what overrides its values, and whether the report is printed as JSON."""
    add_recipe(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Print the report."""
    from maskmed_zoo.build import network_facts
    from maskmed_zoo.recipe import load_recipe

    facts = network_facts(load_recipe(args.recipe, args.overrides))
    if args.json:
        write_json(facts)
        return
    queries = "" if facts["num_queries"] is None else f", {facts['num_queries']} queries"
    title = (
        f"{facts['name']}: {facts['in_channels']} channel(s), {facts['num_classes']} classes{queries}, "
        f"patch {_size(facts['patch_size'])} (z y x)"
    )
    render(title, _levels(facts), _stages(facts), _parameters(facts), f"{facts['macs'] / 1e9:.1f} GMACs per patch")


def _levels(facts: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("level", "channels", "stride", "size", box=None)
    for index, level in enumerate(facts["levels"]):
        table.add_row(str(index), str(level["channels"]), _size(level["stride"]), _size(level["size"]))
    return table


def _stages(facts: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("stage", "maps", "size", "loss weight", box=None)
    for index, stage in enumerate(facts["stages"]):
        maps, *size = stage["shape"]
        table.add_row(str(index), str(maps), _size(size), f"{stage['weight']:z.4f}")
    return table


def _parameters(facts: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("part", "component", "parameters", box=None)
    for part, kind in facts["components"].items():
        if part in facts["parameters"]:
            table.add_row(part, kind, f"{facts['parameters'][part]:,}")
    table.add_row("loss", facts["components"]["loss"], "–")
    groups = ", ".join(f"{name} {count:,}" for name, count in facts["parameter_groups"].items())
    table.add_row("total", f"({groups})", f"{facts['total_parameters']:,}")
    return table


def _size(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
