"""Upload exported weights, checked before, to a repository of the Hugging Face hub.

Needs the extra 'hub' and a login of huggingface_hub.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmed_zoo.cli.output import write


def configure(parser: argparse.ArgumentParser) -> None:
    """The exported folder, the repository, and whether a new one is public."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="what 'export' wrote")
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository; made, and private, if it is new")
    parser.add_argument("--public", action="store_true", help="make a new repository public")


def run(args: argparse.Namespace) -> None:
    """Upload and print the address."""
    from maskmed_zoo.weights.hub import push

    write(push(args.folder, args.repository, public=args.public))
