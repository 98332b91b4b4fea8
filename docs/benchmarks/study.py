"""A study of five folds, killed twice and finished by two processes, its score over all cases, and its ensemble.

    python docs/benchmarks/study.py --data Dataset004_Hippocampus --out runs/study

A fifth of the cases, the validation cases of fold 0, is kept as test cases; the others are the data set of the study,
with nnU-Net's default folds. The command of the study is started in a process group that is killed (SIGKILL) in the
middle of the first fold; started again and told to stop (SIGTERM) in the middle of the second; and given twice at once,
with one thread each, to finish. Then the label maps of all folds are put into one folder and scored as label maps from
anywhere, and every test case is segmented by each network alone and by all together. Writes `study.csv` beside this
file, a row for each step; stops with a message where a score or an average is not what it is by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np

import maskmed_zoo as zoo
from maskmed_zoo.data.formats import read_image
from maskmed_zoo.runner.metrics_file import read_rows

HERE = Path(__file__).resolve().parent
FOLDS = range(5)


def main() -> None:
    """Divide the cases, train, kill, train, score, predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="Dataset004_Hippocampus")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--recipe", default="maskmed_hippocampus_cpu")
    parser.add_argument("--epochs", type=int, default=4, metavar="N")
    parser.add_argument("--iterations", type=int, default=30, metavar="N", help="of an epoch")
    parser.add_argument("--cases", type=int, metavar="N", help="take so many of each part, to try the script")
    parser.add_argument("--csv", type=Path, default=HERE / "study.csv", metavar="FILE")
    args = parser.parse_args()
    data, study = divide(args.data.resolve(), args.out / "Dataset904_Study", args.cases), args.out / "study"
    settings = (f"train.epochs={args.epochs}", f"train.iterations_per_epoch={args.iterations}")
    command = [sys.executable, "-m", "maskmed_zoo", "train", args.recipe, "--data", str(data), "--out", str(study)]
    command += ["--folds", "0-4", "--device", "cpu", *(word for text in settings for word in ("--set", text))]
    rows = train(command, study, args.iterations)
    rows += scores_of_all(study, data)
    rows += test_cases(study, data, args.out)
    facts = {"recipe": args.recipe, "steps": args.epochs * args.iterations}
    measure.write(args.csv, [row | facts | measure.machine() for row in rows])


def divide(source: Path, target: Path, most: int | None) -> Path:
    """A data set of links: the training cases of fold 0, and its validation cases as test cases."""
    description = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    fold = json.loads((source / "splits_final.json").read_text(encoding="utf-8"))[0]
    for ending, names in (("Tr", fold["train"][:most]), ("Ts", fold["val"][:most])):
        for kind, suffix in (("images", "_0000"), ("labels", "")):
            (target / f"{kind}{ending}").mkdir(parents=True)
            for name in names:
                file = f"{name}{suffix}{description['file_ending']}"
                (target / f"{kind}{ending}" / file).symlink_to(source / f"{kind}Tr" / file)
    description = {key: description[key] for key in ("name", "channel_names", "labels", "file_ending")}
    description["numTraining"] = len(fold["train"][:most])
    (target / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return target


def train(command: list[str], study: Path, iterations: int) -> list[dict[str, Any]]:
    """Three sessions: one killed, one told to stop, and two at once that finish."""

    def epochs(fold: int) -> int:
        return len(read_rows(study / f"fold_{fold}" / "metrics.csv", iterations))

    rows: list[dict[str, Any]] = []
    for fold, how, code in ((0, signal.SIGKILL, -signal.SIGKILL), (1, signal.SIGTERM, 143)):
        start, process = time.perf_counter(), started(command, threads=2)
        waited(lambda fold=fold: epochs(fold) >= 1, process)
        told = time.perf_counter()
        # A machine that goes down takes all processes with it; a scheduler tells the one that it has started.
        os.killpg(process.pid, how) if how == signal.SIGKILL else process.send_signal(how)
        found = process.wait()
        check(found == code, f"ended with {found}, expected {code}")
        ended = {"exit_code": found, "seconds_to_end": round(time.perf_counter() - told, 1)}
        state = ", ".join(f"fold {f}: {epochs(f)}" for f in FOLDS if epochs(f))
        rows.append(row(f"{how.name} in fold {fold}", start, note=f"epochs then: {state}", **ended))
    before, start = finished(study), time.perf_counter()
    processes = [started(command, threads=1) for _ in range(2)]
    codes = [process.wait() for process in processes]
    check(codes == [0, 0], f"ended with {codes}")
    check({fold: finished(study)[fold] for fold in before} == before, "a finished fold was trained again")
    note = f"finished before and left alone: folds {', '.join(map(str, before)) or 'none'}"
    return [*rows, row("two processes to the end", start, note=note, exit_code=0)]


def started(command: list[str], *, threads: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)


def waited(is_so: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not is_so():
        check(process.poll() is None, "the command ended too early")
        time.sleep(0.2)
    time.sleep(1)  # into the next epoch


def finished(study: Path) -> dict[int, int]:
    """When the weights of each scored fold were written."""
    runs = {fold: study / f"fold_{fold}" for fold in FOLDS}
    return {
        fold: (run / "weights_last.safetensors").stat().st_mtime_ns
        for fold, run in runs.items()
        if (run / "evaluation.json").exists()
    }


def scores_of_all(study: Path, data: Path) -> list[dict[str, Any]]:
    """The scores of the study, and of the label maps of all its folds in one folder."""
    scores = json.loads((study / "evaluation.json").read_text(encoding="utf-8"))
    together = study.with_name("label_maps")
    together.mkdir()
    for path in study.glob("fold_*/predictions/*.nii.gz"):
        shutil.copy(path, together)
    by_hand = zoo.evaluate(pred=together, ref=data / "labelsTr")
    difference = abs(by_hand["mean_dice"] - scores["mean_dice"])
    check(difference < 1e-12 and len(by_hand["cases"]) == len(scores["cases"]), "another score than by hand")
    rows = [
        row(f"fold {fold['fold']}, its {fold['cases']} cases", cases=fold["cases"], mean_dice=fold["mean_dice"])
        for fold in scores["folds"]
    ]
    note = f"label maps of all folds in one folder: the same but for {difference:.0e}"
    return [*rows, row("cross-validation, all cases", note=note, **dice(scores))]


def test_cases(study: Path, data: Path, out: Path) -> list[dict[str, Any]]:
    """Dice of each network on the test cases, and of all together; probabilities of one case averaged by hand."""
    rows: list[dict[str, Any]] = []
    image = read_image(sorted((data / "imagesTs").iterdir())[0])
    each: list[Any] = []
    for name in (*(f"fold_{fold}" for fold in FOLDS), ""):
        predictor = zoo.load(study / name, device="cpu")
        start = time.perf_counter()
        predictor.files(data / "imagesTs", out / f"test_{name or 'study'}")
        found = dice(zoo.evaluate(pred=out / f"test_{name or 'study'}", ref=data / "labelsTs"))
        each.append(predictor.probabilities(image.array, image.geometry))
        rows.append(row(f"test cases, {name or 'all five networks together'}", start, **found))
    difference = np.abs(np.mean(each[:-1], 0) - each[-1]).max()
    check(difference < 1e-5, "another average than by hand")
    rows[-1]["note"] = f"probabilities of a case averaged by hand: the same but for {difference:.0e}"
    return rows


def dice(scores: dict[str, Any]) -> dict[str, Any]:
    ends = scores["over_cases"]["interval"]
    return {
        "cases": len(scores["cases"]),
        "mean_dice": scores["mean_dice"],
        "interval": "" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}",
        "label_dice": json.dumps({name: round(label["mean"], 4) for name, label in scores["labels"].items()}),
    }


def row(what: str, start: float | None = None, **facts: Any) -> dict[str, Any]:
    """All columns, those that are not known empty."""
    columns = ("seconds", "exit_code", "seconds_to_end", "cases", "mean_dice", "interval", "label_dice", "note")
    seconds = "" if start is None else round(time.perf_counter() - start, 1)
    found = {"what": what} | dict.fromkeys(columns, "") | {"seconds": seconds} | facts
    print(*(f"{key} {value}" for key, value in found.items() if value != ""), sep=", ", flush=True)
    return found


def check(is_so: bool, problem: str) -> None:
    if not is_so:
        raise SystemExit(f"study.py: {problem}")


if __name__ == "__main__":
    main()
