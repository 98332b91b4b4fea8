"""Training that ends early: after the validation that a loop by hand says, however it was cut off, and is finished."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from maskmed_zoo.cli.main import main
from maskmed_zoo.comparison.costs import costs_of
from maskmed_zoo.comparison.methods import Run
from maskmed_zoo.comparison.scores import read_scores
from maskmed_zoo.errors import CheckpointError, RecipeError
from maskmed_zoo.files import sha256_of
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.runner import progress_picture
from maskmed_zoo.runner.evaluate import evaluate
from maskmed_zoo.runner.job import Job
from maskmed_zoo.runner.manifest_file import EarlyEnd
from maskmed_zoo.runner.metrics_file import read_rows
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.study import train_study
from maskmed_zoo.runner.study_members import finished_folds
from maskmed_zoo.runner.train import train
from maskmed_zoo.runner.trainer import Trainer, Validation
from tests.conftest import TINY, make_dataset
from tests.kill.harness import differences
from tests.runner import test_resume as resume
from tests.runner.test_study import in_this_process

EPOCHS, STEPS = 9, 2
SCRIPT = (0.5, 0.6, 0.5, 0.4, 0.7, 0.1, 0.1, 0.1, 0.1)
"""Dice of the epochs, all of them validated."""
ENDS = {1: 3, 2: 4, 3: 8, 4: 9, 5: 9}
"""By patience, after how many epochs training ends: the smoothed Dice is best in the second, then in the fifth."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set and the run of patience 2 that is left alone."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("early")
    (folder / "tiny.yaml").write_text(TINY)
    make_dataset(folder / "data")
    (folder / "whole").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        scripted(patch)
        resume.go(folder, folder / "whole" / "run", recipe=recipe_of(folder))
    return folder


def recipe_of(made: Path, patience: int | None = 2, **more: Any) -> Recipe:
    changes: dict[str, Any] = {"train.epochs": EPOCHS, "train.iterations_per_epoch": STEPS, "train.save_minutes": 0}
    changes |= {"model.head.kind": "pointwise", "model.loss.kind": "ce_dice", "model.neck.kind": "skip"}
    changes |= {"train.patience": patience, "train.validation_iterations": 1, "data.augmentation": {"kind": "light"}}
    return load_recipe(made / "tiny.yaml", changes | {key.replace("__", "."): v for key, v in more.items()})


def scripted(patch: pytest.MonkeyPatch, script: Sequence[float] = SCRIPT) -> list[int]:
    """Validations say what is written here; the epochs in which they were asked."""
    asked: list[int] = []

    def says(self: Trainer, batches: Iterable[Any]) -> Validation:
        for _ in batches:
            pass
        asked.append(self.iteration // self.recipe.train.iterations_per_epoch)
        return Validation(script[asked[-1] - 1], {}, None)

    patch.setattr(Trainer, "validate", says)
    return asked


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return scripted(monkeypatch)


def smoothed(script: Sequence[float]) -> list[float]:
    """The closed form of the average: weights 0.9 ** age, the first one's the rest."""
    return [
        math.fsum((1.0 if j == 0 else 0.1) * 0.9 ** (i - j) * script[j] for j in range(i + 1))
        for i in range(len(script))
    ]


def ends_after(script: Sequence[float], patience: int) -> int:
    """The first validation that is the last of so many after the best of all up to it, else the last of all."""
    values = smoothed(script)
    for last in range(len(values)):
        if last - max(range(last + 1), key=lambda i: (values[i], -i)) >= patience:
            return last + 1
    return len(values)


def test_ends_by_hand() -> None:
    assert {patience: ends_after(SCRIPT, patience) for patience in ENDS} == ENDS
    assert any(a > b for a, b in pairwise(SCRIPT)), "and not by the Dice that is not smoothed"


@pytest.mark.parametrize("patience", [1, 3, 4, None])
def test_ends_where_the_script_says(made: Path, tmp_path: Path, asked: list[int], patience: int | None) -> None:
    run = resume.go(made, tmp_path / "run", recipe=recipe_of(made, patience, train__iterations_per_epoch=1))
    last = EPOCHS if patience is None else ENDS[patience]
    assert asked == list(range(1, last + 1))
    rows = read_rows(run.metrics_file, 1)
    assert [float(row["validation_dice_average"]) for row in rows] == pytest.approx(smoothed(SCRIPT)[:last])
    assert run.epochs_behind("last", sha256_of(run.weights_file("last"))) == last
    counted = [row.get("validations_since_best") for row in rows]
    assert counted == ([None] * EPOCHS if patience is None else [*"001201234"][:last])
    end = run.early_end()
    assert (None if end is None else (end.epoch, end.of, end.validations)) == (
        None if patience is None else (last, EPOCHS, patience)
    )


def test_counts_validations_and_not_epochs(made: Path, tmp_path: Path, asked: list[int]) -> None:
    """Every second epoch; the last of nine is validated in any case."""
    recipe = recipe_of(made, 1, train__validate_every=2, train__iterations_per_epoch=1)
    run = resume.go(made, tmp_path / "run", recipe=recipe)
    assert asked == [2, 4]
    end = run.early_end()
    assert end == EarlyEnd(epoch=4, of=EPOCHS, validations=1, best=0.6)


@pytest.mark.parametrize("cuts", [(1, 5), (6, 7)])
def test_cut_off_within_an_epoch_and_between(made: Path, tmp_path: Path, asked: list[int], cuts: Sequence[int]) -> None:
    whole = RunFolder(made / "whole" / "run")
    for at in cuts:
        resume.cut(made, tmp_path / "run", at, recipe=recipe_of(made))
    run = resume.go(made, tmp_path / "run", recipe=recipe_of(made), resume=True)
    assert asked[-1] == 4
    assert differences(whole, run) == []
    assert run.early_end() == whole.early_end() == EarlyEnd(epoch=4, of=EPOCHS, validations=2, best=0.51)


@pytest.mark.parametrize("place", ["weights_last.safetensors", "state_last.pt", "note"])
def test_cut_off_at_the_end(
    made: Path, tmp_path: Path, asked: list[int], place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the files of the last checkpoint, and between its state and the note in the manifest."""
    whole, replace = RunFolder(made / "whole" / "run"), Path.replace

    def dies(*_: object) -> None:
        raise resume.DiesError

    def put(self: Path, target: Path) -> Path:
        if asked[-1:] == [4] and Path(target).name == place:
            dies()
        return replace(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", put)
        if place == "note":
            patch.setattr(RunFolder, "note_early_end", dies)
        with pytest.raises(resume.DiesError):
            resume.go(made, tmp_path / "run", recipe=recipe_of(made))
    run = RunFolder(tmp_path / "run")
    assert run.early_end() is None
    del asked[:]
    capsys.readouterr()
    resume.go(made, run.path, recipe=recipe_of(made), resume=True)
    assert asked == ([] if place == "note" else [4])
    told = [line for line in capsys.readouterr().err.splitlines() if "train.patience" in line]
    assert told == [
        f"{run.path}: training has ended after 4 of 9 epochs: 2 validations in a row without a new best "
        f"(train.patience), which is a smoothed Dice of 0.5100"
    ]
    assert differences(whole, run) == []
    assert run.early_end() == whole.early_end()


def test_is_finished_for_everybody(
    made: Path, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study, its folds, costs, the picture, the command, and a longer run that is refused."""
    ran, titles, out = in_this_process(monkeypatch), list[str](), tmp_path / "study"
    monkeypatch.setattr(progress_picture, "progress_figure", lambda _, title, __: titles.append(title))
    arguments: dict[str, Any] = {"data": made / "data", "out": out, "folds": "0-1", "device": "cpu"}
    recipe = recipe_of(made, 2, train__iterations_per_epoch=1)
    summary = train_study(recipe, **arguments)
    assert summary["incomplete"] == []
    assert (summary["scores"]["epochs"], ran, asked) == (4, [0, 1], [1, 2, 3, 4] * 2)
    assert titles[-1].startswith("tiny: epoch 4 of 9, ended early, ")
    assert not any("early" in title for title in titles if "epoch 3" in title)
    train_study(recipe, **arguments)
    assert len(ran) == 2, "nothing is left to do"
    told: list[str] = []
    runs = finished_folds(out, told.append)
    assert ([*runs], told) == ([0, 1], [])
    assert costs_of([Run(read_scores(out / "evaluation.json", [])[1], {}, out)])["training_seconds"]
    run = runs[0]
    job = Job("fold 0", recipe, run, 0)
    assert job.state() == "finished"
    assert Job("fold 0", recipe_of(made, 2, train__epochs=12), run, 0).scores() is None
    run.evaluation_file.unlink()
    assert job.state() == "unfinished, 4 of 4 epochs"
    words = ["train", "--resume", str(run.path)]
    assert main([*words, "--extend-to", "20"]) == 2
    assert "2 validations in a row without a new best (train.patience)" in (line := capsys.readouterr().err)
    assert f"--init '{run.path}'" in line
    assert run.recipe().train.epochs == EPOCHS
    assert main([*words, "--extend-to", str(EPOCHS)]) == main(words) == 0
    assert "training has ended after 4 of 9 epochs" in capsys.readouterr().err
    assert len(asked) == 8
    assert json.loads(run.evaluation_file.read_text())["epochs"] == 4
    assert evaluate(run, device="cpu", which="best")["epochs"] == 2


def test_refused_where_nothing_validates(made: Path, tmp_path: Path, asked: list[int]) -> None:
    with pytest.raises(
        RecipeError, match=r"patience counts validations, and validation_iterations: 0 leaves none"
    ) as e:
        recipe_of(made, 2, train__validation_iterations=0)
    assert "\n" not in str(e.value)
    with pytest.raises(RecipeError, match=r"^train\.patience: no case validates, so nothing would end training; give"):
        train(recipe_of(made), data=made / "data", out=tmp_path / "run", fold="all", device="cpu")
    assert not (tmp_path / "run").exists()
    for wrong in (0, -1, 1.5, True, "x"):
        with pytest.raises(RecipeError, match="patience"):
            recipe_of(made, wrong)  # type: ignore[arg-type]


def test_another_patience_is_another_recipe(made: Path, tmp_path: Path, asked: list[int]) -> None:
    resume.cut(made, tmp_path / "run", 3, recipe=recipe_of(made))
    with pytest.raises(CheckpointError, match=r"another recipe: train\.patience was 2, now None"):
        resume.go(made, tmp_path / "run", recipe=recipe_of(made, None), resume=True)


def test_a_note_that_cannot_be_read(made: Path) -> None:
    run = RunFolder(made / "whole" / "run")
    manifest = run.manifest()
    for wrong in (3, {}, {"epoch": 0, "of": 9, "validations": 2, "best": 0.5}):
        run.manifest_file.write_text(json.dumps(manifest | {"ended_early": wrong}))
        assert run.whole(EPOCHS) == EPOCHS
        with pytest.raises(CheckpointError, match=r"manifest\.json: cannot be read \(ended_early"):
            run.manifest()
    run.manifest_file.write_text(json.dumps(manifest))
    assert run.whole(EPOCHS) == 4
    assert run.whole(EPOCHS + 1) == EPOCHS + 1
