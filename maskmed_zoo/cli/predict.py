"""Segment images (NIfTI files or folders of them) with a trained run; label maps keep each image's own geometry."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmed_zoo.cli.output import add_device, add_weights, write
from maskmed_zoo.runner.predict import predict
from maskmed_zoo.runner.run_folder import RunFolder


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a trained run")
    parser.add_argument("inputs", metavar="INPUT", type=Path, nargs="+", help="image files, or folders of them")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the label maps, or one .nii.gz for one input")
    parser.add_argument("--overwrite", action="store_true", help="predict again what predict made before")
    add_weights(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Predict and name the files written."""
    written = predict(
        RunFolder(args.run), args.inputs, args.out, device=args.device, overwrite=args.overwrite, which=args.weights
    )
    for path in written:
        write(str(path))
