"""Get exported weights from an address, a zip file or the Hugging Face hub, check them, and put them into a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmed_zoo.cli.output import write
from maskmed_zoo.weights.hub import pull


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("source", metavar="SOURCE", help="https://…/card.json, https://….zip, a .zip, or hf:OWNER/NAME")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="a new folder")
    parser.add_argument("--revision", metavar="R", help="of a hub repository: a branch, tag or commit")
    parser.add_argument("--sha256", metavar="S", help="of a zip file; its download can then be resumed")


def run(args: argparse.Namespace) -> None:
    """Download, check, and say what it is."""
    card = pull(args.source, args.out, revision=args.revision, sha256=args.sha256)
    write(f"{args.out}: {card['name']}, license {card['license']}")
