"""What a run leaves, and is continued, scored, exported and compared from: manifest, metrics, state, scores, stamp."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch

import maskmed_zoo as zoo
from maskmed_zoo.ablation.cell import Cell, CellFolder
from maskmed_zoo.ablation.grid import Grid
from maskmed_zoo.ablation.plan import Ablation
from maskmed_zoo.ablation.tables import summarize_ablation, write_tables
from maskmed_zoo.build import network_facts
from maskmed_zoo.data.predicted import STAMP, PredictedFolder
from maskmed_zoo.export.export import export
from maskmed_zoo.labels import Labels
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.runner import checkpoint
from maskmed_zoo.runner.evaluate import validation_cases
from maskmed_zoo.runner.job import Task
from maskmed_zoo.runner.manifest import check_folder
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.trainer import Trainer
from tests.conftest import TINY, make_dataset
from tests.fuzz.harness import GIVEN, Target
from tests.fuzz.mutate import json_bytes, mutated_bytes, mutated_tree

FACTS = ("dataset", "fold", "training", "validation", "data")


def _run(folder: Path) -> Path:
    """A finished run of one epoch, with its data set beside it."""
    data = make_dataset(folder / "Dataset001_Boxes", cases=2)
    zoo.train(_tiny(), data=data, out=folder / "run", device="cpu", workers=0)
    zoo.evaluate(folder / "run", device="cpu")
    return folder / "run"


@cache
def _tiny() -> Recipe:
    """The recipe of the runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.yaml"
        path.write_text(TINY, encoding="utf-8")
        return load_recipe(path, {"train.epochs": 1, "train.iterations_per_epoch": 1, "train.batch_size": 1})


def _copy(run: Path, folder: Path) -> RunFolder:
    copied = folder / GIVEN / "run"
    shutil.copytree(run, copied)
    return RunFolder(copied)


def _read_manifest(original: Path, random: Random, folder: Path) -> None:
    run = _copy(original, folder)
    facts = {key: value for key, value in run.manifest().items() if key in FACTS}
    facts["data"] = [{k: v for k, v in record.items() if k != "path"} for record in facts["data"]]
    recipe, given = run.recipe(), json.loads(run.manifest_file.read_bytes())
    run.manifest_file.write_bytes(json_bytes(random, given))
    manifest = run.manifest()
    run.fingerprint()
    validation_cases(manifest, None, recipe.channels)
    if random.random() < 0.1:
        export(run, folder / GIVEN / "export", license="mit")
    check_folder(run, recipe, facts, resume=True)


def _read_evaluation(original: Path, random: Random, folder: Path) -> None:
    run = _copy(original, folder)
    run.evaluation_file.write_bytes(json_bytes(random, json.loads(run.evaluation_file.read_bytes())))
    _read_cell(run)
    if random.random() < 0.2:
        export(run, folder / GIVEN / "export", license="mit")


def _read_cell(run: RunFolder) -> None:
    """As an ablation reads its cells."""
    cell = Cell("row, seed 0", run.recipe(), run, 0, "row")
    scores = cell.scores()
    assert isinstance(cell.progress(), str)
    cell.resources()
    if scores is not None:
        _summary(cell)


def _summary(cell: Cell) -> None:
    """The tables of an ablation whose two cells are this one."""
    rows = {"row": {"set": []}, "other": {"set": []}}
    grid = Grid.model_validate({"schema_version": 1, "name": "g", "recipe": "tiny", "baseline": "row", "rows": rows})
    cells = (cell, Cell("other, seed 0", cell.recipe, cell.run, 0, "other"))
    networks = dict.fromkeys(rows, _facts())
    ablation = Ablation(grid, "tiny", (), ("x",), (cell.seed,), (0,), Task(("x",)), cell.run.path, networks, cells)
    write_tables(summarize_ablation(ablation), cell.run.path)


@cache
def _facts() -> dict[str, Any]:
    """Of a network; which one is the same for the tables."""
    return network_facts(load_recipe("maskmed_phantom"))


@cache
def _trainer() -> Trainer:
    """One for all cases: what a state leaves in it, the next one replaces."""
    return Trainer(_tiny(), torch.device("cpu"))


def _read_metrics(original: Path, random: Random, folder: Path) -> None:
    run = _copy(original, folder)
    content = run.metrics_file.read_bytes()
    if random.random() < 0.5:
        rows = [list(row) for row in csv.reader(io.StringIO(content.decode()))]
        text = io.StringIO()
        harmed = mutated_tree(random, rows)
        table = harmed if isinstance(harmed, list) else [harmed]
        csv.writer(text).writerows([row if isinstance(row, list) else [row] for row in table])
        content = text.getvalue().encode("utf-8", "surrogatepass")
    run.metrics_file.write_bytes(mutated_bytes(random, content) if random.random() < 0.7 else content)
    _read_cell(run)
    checkpoint.load(run, _trainer())


def _read_run_recipe(original: Path, random: Random, folder: Path) -> None:
    run = _copy(original, folder)
    run.recipe_file.write_bytes(mutated_bytes(random, run.recipe_file.read_bytes()))
    CellFolder(run.path.parent.parent, ("Dataset001_Boxes",), 0).cell("row", _tiny())
    zoo.load(run.path, device="cpu")


def _read_state(original: Path, random: Random, folder: Path) -> None:
    run = _copy(original, folder)
    if random.random() < 0.5:
        run.state_file.write_bytes(mutated_bytes(random, run.state_file.read_bytes()))
    else:
        state = torch.load(run.state_file, weights_only=True)
        harmed = _mutated_state(random, state)
        torch.save(harmed, run.state_file)
    trainer = _trainer()
    progress = checkpoint.load(run, trainer)
    assert isinstance(progress.epoch, int)
    assert 0 <= progress.epoch < 10**6
    size = trainer.recipe.data.patch_size
    trainer.step(torch.zeros(1, 1, *size), torch.zeros(1, *size, dtype=torch.int64))


def _mutated_state(random: Random, state: dict[str, Any]) -> Any:
    """A harmed state: another value, shape or type at one of its places."""
    values = (None, 0, -1, 10**12, True, "x", [], {}, float("nan"), torch.zeros(3), torch.zeros((), dtype=torch.int64))
    parent: Any = state
    key: Any = random.choice(list(state))
    for _ in range(random.choice((0, 0, 1, 2, 3))):
        inner = parent[key]
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner))) if isinstance(inner, list) else []
        if keys:
            parent, key = inner, random.choice(keys)
    if random.random() < 0.2:
        del parent[key]
    else:
        parent[key] = random.choice(values)
    return state


def _read_stamp(original: Path, random: Random, folder: Path) -> None:
    copied = folder / GIVEN / "predictions"
    shutil.copytree(original / "predictions", copied)
    stamp = copied / STAMP
    stamp.write_bytes(json_bytes(random, json.loads(stamp.read_bytes())))
    record, names = PredictedFolder(copied), [path.name for path in copied.iterdir()]
    for name in (*names, "none.nii.gz"):
        assert record.weights_of(name) is None or isinstance(record.weights_of(name), str)
        assert isinstance(record.labels_of(name), Labels | None)
        for ask in (record.is_listed, record.is_predicted):
            assert isinstance(ask(name), bool)
        assert isinstance(record.is_known(name, names[0]), bool)
    with record.held():
        record.announce("case_00.nii.gz", "0" * 64, {"background": 0, "left": 1}, {"case_00.nii.gz": "1" * 64})
        record.enter("case_00.nii.gz")
    assert PredictedFolder(copied).is_listed("case_00.nii.gz")


def _read_resources(original: Path, random: Random, folder: Path) -> None:
    run = _copy(original, folder)
    manifest = json.loads(run.manifest_file.read_bytes())
    manifest.pop("peak_memory_bytes", None)
    run.manifest_file.write_text(json.dumps(manifest), encoding="utf-8")
    path = run.path / "resources.json"
    path.write_bytes(json_bytes(random, {"peak_memory_bytes": 10**9, "memory": "resident"}))
    _read_cell(run)


_Attempt = Callable[[Any, Random, Path], None]
_READERS: dict[str, _Attempt] = {
    "manifest.json": _read_manifest,
    "evaluation.json": _read_evaluation,
    "metrics.csv": _read_metrics,
    "recipe.yaml of a run": _read_run_recipe,
    "state_last.pt": _read_state,
    "prediction stamp": _read_stamp,
    "resources.json": _read_resources,
}
RUNS = tuple(Target(name, 2000, _run, attempt) for name, attempt in _READERS.items())
