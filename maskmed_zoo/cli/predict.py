"""Segment images (NIfTI files or folders of them) with a trained run; label maps keep each image's own geometry.

Of a study, the probabilities of the networks of all its folds are averaged. A folder of nnU-Net's results, of a trained
model or of one of its folds, is predicted with as nnU-Net does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmed_zoo.cli.output import add_device, add_weights, write


def configure(parser: argparse.ArgumentParser) -> None:
    """The run, the images, where the label maps go, which weights, and the device."""
    parser.add_argument(
        "run",
        metavar="RUN",
        type=Path,
        help="folder of a trained run, of a study, of exported weights, or of nnU-Net's results",
    )
    parser.add_argument(
        "inputs", metavar="INPUT", type=Path, nargs="+", help=".nii or .nii.gz files, or folders of .nii.gz files"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the label maps, or one .nii.gz for one case")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="predict again what 'predict' made before, with these or other weights; anything else is never replaced",
    )
    parser.add_argument(
        "--no-mirroring", action="store_true", help="of nnU-Net's models: without the mean over mirrored copies"
    )
    add_weights(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Predict and name the files written."""
    from maskmed_zoo import distributed
    from maskmed_zoo.errors import ArgumentError
    from maskmed_zoo.runner.predict import predict
    from maskmed_zoo.runner.run_folder import RunFolder

    with distributed.one_voice():
        if distributed.size() > 1:
            raise ArgumentError(
                "predict: torchrun would let every process predict every image; give the command without it, or "
                "several times, each with images of its own"
            )
    written = predict(
        RunFolder(args.run),
        args.inputs,
        args.out,
        device=args.device,
        overwrite=args.overwrite,
        which=args.weights,
        mirroring=False if args.no_mirroring else None,
    )
    for path in written:
        write(str(path))
