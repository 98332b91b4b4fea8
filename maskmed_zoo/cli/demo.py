"""Make a phantom data set, train a small MaskMed on it, score it and draw a picture: four minutes on two cores.

An earlier demo in its folder is replaced, any other folder is left alone. Needs the extra 'report'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmed_zoo.cli.output import add_device, render, write


def configure(parser: argparse.ArgumentParser) -> None:
    """The folder of the demonstration and the device."""
    parser.add_argument(
        "--out", type=Path, default=Path("maskmed_demo"), metavar="DIR", help="its folder (default: %(default)s)"
    )
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Run it and print the table."""
    from maskmed_zoo.demo import demo
    from maskmed_zoo.evaluation.table import tables

    scores, picture = demo(args.out, device=args.device)
    render(*tables(scores))
    write(f"picture: {picture}")
    write(f"mean Dice {scores['mean_dice']:.2f} over {len(scores['cases'])} cases")
