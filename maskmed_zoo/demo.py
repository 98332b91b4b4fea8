"""The demonstration: phantoms, a short training, scores on phantoms never seen, and a picture."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from maskmed_zoo.data.formats import read_image, read_labels
from maskmed_zoo.data.phantom import make_phantom_dataset
from maskmed_zoo.errors import DataError, OutputError, UserError
from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.files import make_folder, usable, write_atomically
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.report.figure import comparison_figure
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.predict import predict
from maskmed_zoo.runner.train import train

MARK = "made_by_maskmed_zoo_demo"
RECIPE = "maskmed_phantom"
MADE = ("Dataset900_Phantom", "run", "predictions", "demo.png", ".maskmed_cache")
"""What a demonstration leaves in its folder; nothing else there is touched by the next one."""
CASES, TEST_CASES = 24, 8
SHAPE = (32, 40, 48)


def demo(out: Path, *, device: str | None = None, display: Display | None = None) -> tuple[dict[str, Any], Path]:
    """Run the demonstration in `out`, replacing an earlier one there; returns the test scores and the picture.

    Raises `DataError` if `out` exists and is not from an earlier demonstration.
    """
    display = display or Display()
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError('the demo draws a picture and needs matplotlib: pip install "maskmed-zoo[report]"')
    mark = usable(out) / MARK
    if out.exists() and not mark.exists():
        raise DataError(f"{out}: exists and is not from an earlier demo; give another folder with --out")
    make_folder(out)
    for name in MADE:
        path = out / name
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{path}: cannot be removed ({error.strerror}); give another --out") from error
    write_atomically(mark, Path.touch)
    with display.task("making phantoms") as progress:
        data = make_phantom_dataset(out / MADE[0], cases=CASES, test_cases=TEST_CASES, shape=SHAPE, progress=progress)
    run = train(load_recipe(RECIPE), data=data, out=out / "run", device=device, display=display)
    predictions = out / "predictions"
    predict(run, [data / "imagesTs"], predictions, device=device, display=display)
    scores = evaluate_folders(predictions, data / "labelsTs")
    names = sorted(path.name.removesuffix(".nii.gz") for path in predictions.glob("*.nii.gz"))[:2]
    volumes = [(name, read_image(data / "imagesTs" / f"{name}_0000.nii.gz")) for name in names]
    rows = [
        (
            name,
            volume.array,
            read_labels(data / "labelsTs" / f"{name}.nii.gz").array,
            read_labels(predictions / f"{name}.nii.gz").array,
        )
        for name, volume in volumes
    ]
    picture = out / "demo.png"
    comparison_figure(picture, rows, run.recipe().labels.names, volumes[0][1].spacing, window=(-200.0, 300.0))
    return scores, picture
