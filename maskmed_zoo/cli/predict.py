"""Segment images (NIfTI files or folders of them) with a trained run; label maps keep each image's own geometry.

Of a study, the probabilities of the networks of all its folds are averaged, of several runs given by --with too. A
folder of nnU-Net's results, of a trained model or of one of its folds, is predicted with as nnU-Net does.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from maskmed_zoo.cli.output import add_device, add_set, add_weights, write


def configure(parser: argparse.ArgumentParser) -> None:
    """The runs, the images, what is written where, which weights and settings, and the device."""
    parser.add_argument(
        "run",
        metavar="RUN",
        type=Path,
        help="folder of a trained run, of a study, of exported weights, or of nnU-Net's results; RUN@best: its best "
        "weights",
    )
    parser.add_argument(
        "inputs", metavar="INPUT", type=Path, nargs="+", help=".nii or .nii.gz files, or folders of .nii.gz files"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the label maps, or one .nii.gz for one case")
    parser.add_argument(
        "--with",
        dest="others",
        metavar="RUN",
        type=Path,
        action="append",
        default=[],
        help="a further run, study or exported folder, whose networks are averaged with those of the first; repeatable",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="predict again what 'predict' made before, with these or other weights; anything else is never replaced",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="also NAME_probabilities.nii.gz for each case: 4-D, a volume per label, 16 bits scaled to 0 … 1",
    )
    parser.add_argument(
        "--npz",
        action="store_true",
        help="also NAME.npz and NAME.pkl for each case, as nnUNetv2_predict writes them with --save_probabilities",
    )
    parser.add_argument(
        "--part", metavar="I/N", default="1/1", help="the I-th of N disjoint shares of the cases, as 2/4 (default: all)"
    )
    parser.add_argument(
        "--no-postprocess",
        action="store_true",
        help="label maps as the network gives them, without what 'postprocess' chose for RUN",
    )
    add_weights(parser)
    add_set(parser, "the section 'inference'", "inference.mirror=true")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Predict and name the files written; of several processes, all predict, and rank 0 names the files."""
    from maskmed_zoo import distributed
    from maskmed_zoo.runner.predict import predict

    part = _part(args.part)
    with distributed.one_voice():
        written = predict(
            [args.run, *args.others],
            args.inputs,
            args.out,
            device=args.device,
            overwrite=args.overwrite,
            which=args.weights,
            postprocess=not args.no_postprocess,
            overrides=args.overrides,
            probabilities=args.probabilities,
            npz=args.npz,
            part=part,
        )
        if distributed.is_first():
            for path in written:
                write(str(path))


def _part(text: str) -> tuple[int, int]:
    from maskmed_zoo.errors import ArgumentError

    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ArgumentError(f"--part {text}: expected I/N, the I-th of N shares counted from 1, such as 2/4")
    return int(found[1]), int(found[2])
