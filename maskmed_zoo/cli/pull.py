"""Get exported weights from an address, a zip file or the Hugging Face hub, check them, and put them into a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmed_zoo.cli.output import write


def configure(parser: argparse.ArgumentParser) -> None:
    """Where the weights are, a new folder, and what tells one version from another."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="https://…/card.json with the files beside it, https://….zip, a local .zip, or hf:OWNER/NAME, a "
        "repository of the Hugging Face hub (extra 'hub')",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="a new folder")
    parser.add_argument("--revision", metavar="R", help="of a hub repository: a branch, tag or commit")
    parser.add_argument("--sha256", metavar="S", help="of a zip file; an interrupted download is then resumed")


def run(args: argparse.Namespace) -> None:
    """Download, check, and say what it is."""
    from maskmed_zoo.weights.hub import pull

    card = pull(args.source, args.out, revision=args.revision, sha256=args.sha256)
    write(f"{args.out}: {card['name']}, license {card['license']}")
