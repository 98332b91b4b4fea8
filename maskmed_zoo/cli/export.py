"""Export a run with a card: its weights, or its whole pipeline as a torch.export program or an ONNX graph."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmed_zoo import renamed
from maskmed_zoo.cli.output import add_weights, write
from maskmed_zoo.export import formats


def configure(parser: argparse.ArgumentParser) -> None:
    """The run, a new folder, the licence of the weights, and which weights."""
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a trained run")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="a new folder")
    license = parser.add_mutually_exclusive_group(required=True)
    license.add_argument("--license", metavar="L", help="of the weights, as the training data allow: CC-BY-4.0, …")
    license.add_argument("--licence", help=argparse.SUPPRESS)  # its name in earlier versions
    parser.add_argument("--format", choices=formats.names(), default=formats.DEFAULT, help="default: %(default)s")
    parser.add_argument("--fp16", action="store_true", help="onnx: store the weights in 16 bits, half as large")
    add_weights(parser)


def run(args: argparse.Namespace) -> None:
    """Write the folder and name it."""
    from maskmed_zoo.export.export import export
    from maskmed_zoo.runner.run_folder import RunFolder

    if args.licence is not None:
        renamed.log_once("'--licence' is now '--license'")
        args.license = args.licence
    export(RunFolder(args.run), args.out, license=args.license, which=args.weights, format=args.format, fp16=args.fp16)
    write(str(args.out))
