"""Instance segmentation of lesions: phantoms, a training run, a list of what was found, and scores of objects.

python examples/instances.py 1500      # steps; without a number only so many that every file is there to look at
"""

import json
import sys
import tempfile
from pathlib import Path

import maskmed_zoo as zoo
from maskmed_zoo.data.phantom import make_phantom_dataset
from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.runner.predict import predict
from maskmed_zoo.runner.train import train

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 4
with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    cases, tests = (48, 16) if steps > 100 else (4, 1)
    data = make_phantom_dataset(root / "data", cases=cases, test_cases=tests, shape=(32, 40, 40), content="lesions")

    # `data.instances: map` in the recipe gives every lesion of instancesTr/ a query of its own.
    overrides = {"train.epochs": max(1, steps // 100), "train.iterations_per_epoch": min(steps, 100)}
    run = train(zoo.load_recipe("instances_phantom", overrides), data=data, out=root / "run")

    for label_map in predict(run, [data / "imagesTs"], root / "out")[:2]:
        lesions = json.loads(label_map.with_name(label_map.name.replace(".nii.gz", "_instances.json")).read_text())
        print(f"{label_map.name}: {len(lesions)} lesions")
        for number, lesion in lesions.items():
            print(f"  {number}: {lesion['label']}, {lesion['volume_mm3'] / 1000:.1f} ml, score {lesion['score']}")

    scores = evaluate_folders(root / "out", data / "labelsTs")["instances"]
    print(f"panoptic quality {scores['pq']:.3f}, lesion-wise Dice {scores['lesion_dice']:.3f}, F1 {scores['f1']:.3f}")
