"""Show what a trained run's queries are, which classes they answer for and where they look: pictures and numbers.

Needs the extra 'report'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmed_zoo.cli.output import add_device, add_moved_data, add_weights, write
from maskmed_zoo.explain import VALIDATION_CASES


def configure(parser: argparse.ArgumentParser) -> None:
    """The run, the images or validation cases, where to look in them, and where the pictures go."""
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a trained run")
    parser.add_argument(
        "images",
        metavar="IMAGE",
        type=Path,
        nargs="*",
        help="as INPUT of 'predict'; none: validation cases of the run, which have references",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="explain.json, binding.png and a folder of pictures per case are written here",
    )
    parser.add_argument(
        "--validation", type=int, metavar="N", help=f"how many validation cases (default: {VALIDATION_CASES})"
    )
    add_moved_data(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--label",
        metavar="NAME",
        help="attention and sampling points around the middle of this label as predicted (default: the largest one)",
    )
    where.add_argument(
        "--point",
        type=_point,
        metavar="Z,Y,X",
        help="the same around this voxel, from 0, of the image turned to RAS order: x from left to right, y from back "
        "to front, z from below",
    )
    add_weights(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Explain and name the files written."""
    from maskmed_zoo.explain.explain import explain
    from maskmed_zoo.runner.run_folder import RunFolder

    written = explain(
        RunFolder(args.run),
        args.out,
        args.images,
        validation=args.validation,
        data=args.data,
        device=args.device,
        which=args.weights,
        label=args.label,
        point=args.point,
    )
    for path in written:
        write(str(path))


def _point(text: str) -> tuple[float, float, float]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected three whole numbers z,y,x, got '{text}'")
    z, y, x = (float(part) for part in parts)
    return z, y, x
