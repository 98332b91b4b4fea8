"""Nothing of the user's is ever overwritten: inputs, others' files, maps corrected by hand, the last whole map."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from maskmed_zoo.cli.main import main
from maskmed_zoo.data.predicted import STAMP, PredictedFolder
from maskmed_zoo.errors import DataError
from maskmed_zoo.inference import write as predictions
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.evaluate import evaluate
from maskmed_zoo.runner.load import load
from maskmed_zoo.runner.predict import predict
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of a few steps that separates objects, so that a case has three files."""
    from tests.conftest import TINY, make_dataset

    folder = tmp_path_factory.mktemp("overwriting")
    (folder / "tiny.yaml").write_text(TINY)
    overrides = ["train.epochs=1", "train.iterations_per_epoch=2", "data.instances=components"]
    overrides += ["model.head.kind=pointwise", "model.loss.kind=ce_dice"]
    recipe = load_recipe(folder / "tiny.yaml", overrides)
    return train(recipe, data=make_dataset(folder / "data"), out=folder / "run", device="cpu")


@pytest.fixture(scope="module")
def other(run: RunFolder) -> RunFolder:
    """The same run with other weights, and so other label maps."""
    copy = RunFolder(run.path.with_name("other"))
    shutil.copytree(run.path, copy.path)
    predictor = load(copy, device="cpu")
    for parameter in predictor.model.parameters():
        parameter.data.mul_(-1.5)
    copy.save_weights(predictor.model, "last", predictor.recipe)
    return copy


@pytest.fixture
def scans(run: RunFolder, tmp_path: Path) -> list[Path]:
    """Two images under plain names, a folder of their own."""
    (tmp_path / "scans").mkdir()
    images = sorted((run.path.parent / "data" / "imagesTr").iterdir())
    return [
        Path(shutil.copy(path, tmp_path / "scans" / f"{name}.nii.gz"))
        for path, name in zip(images[:2], "ab", strict=True)
    ]


def refused(call: Callable[[], object], match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_last_input_is_not_taken_for_the_output(run: RunFolder, scans: list[Path], overwrite: bool) -> None:
    """`predict RUN a.nii.gz b.nii.gz`: the output is forgotten, and scan b stands in its place."""
    before = scans[1].read_bytes()
    refused(lambda: predict(run, scans[:1], scans[1], device="cpu", overwrite=overwrite), r"b\.nii\.gz: made by someth")
    refused(lambda: predict(run, [scans[1]], scans[1], device="cpu", overwrite=overwrite), r"b\.nii\.gz: is an input")
    assert scans[1].read_bytes() == before
    words = ["predict", str(run.path), *map(str, scans), *(["--overwrite"] if overwrite else [])]
    assert main(words) == 2
    assert scans[1].read_bytes() == before


def test_an_output_is_an_input_under_another_name(run: RunFolder, scans: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "scans")
    (tmp_path / "hard").mkdir()
    (tmp_path / "hard" / "a.nii.gz").hardlink_to(scans[0])
    for out in ("link", "hard", "scans/../scans"):
        refused(lambda out=out: predict(run, [scans[0]], tmp_path / out, device="cpu", overwrite=True), "is an input")
    refused(lambda: predict(run, [scans[0].parent], scans[0].parent, device="cpu", overwrite=True), "is an input")
    assert not (scans[0].parent / STAMP).exists()


def test_an_instance_map_is_an_output_too(run: RunFolder, scans: list[Path]) -> None:
    scan = scans[0].rename(scans[0].with_name("b_instances.nii.gz"))
    refused(
        lambda: predict(run, [scan, scans[1]], scan.parent / "out" / "..", device="cpu", overwrite=True), "an input"
    )
    out = scan.parent / "out"
    out.mkdir()
    shutil.copy(scan, out)
    refused(
        lambda: predict(run, [scans[1]], out, device="cpu", overwrite=True), r"b_instances\.nii\.gz: made by someth"
    )


@pytest.mark.parametrize("plain", [False, True], ids=["numbered", "plain"])
def test_images_and_predictions_in_one_folder(run: RunFolder, scans: list[Path], plain: bool, tmp_path: Path) -> None:
    """`predict RUN IN IN`, twice: the second time it does not trip over the predictions of the first."""
    if plain:
        folder = scans[0].parent
        assert len(predict(run, [folder], tmp_path / "out", device="cpu")) == 2
        for path in (tmp_path / "out").iterdir():
            if path.name != STAMP:  # predictions put beside the images, under names that are no image's
                path.rename(folder / f"seg_{path.name}")
        stamp = json.loads((tmp_path / "out" / STAMP).read_text())
        renamed = {
            "weights_sha256": {f"seg_{name}": value for name, value in stamp["weights_sha256"].items()},
            "files": {f"seg_{name}": value for name, value in stamp["files"].items()},
        }
        (folder / STAMP).write_text(json.dumps(stamp | renamed))
        assert [path.name for path in predict(run, [folder], tmp_path / "new", device="cpu")] == [
            "a.nii.gz",
            "b.nii.gz",
        ]
        return
    folder = tmp_path / "in"
    shutil.copytree(run.path.parent / "data" / "imagesTr", folder)
    assert len(predict(run, [folder], folder, device="cpu")) == 4
    assert predict(run, [folder], folder, device="cpu") == []
    assert len(predict(run, [folder], folder, device="cpu", overwrite=True)) == 4


def test_a_map_corrected_by_hand_is_the_users(
    run: RunFolder, other: RunFolder, scans: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (target,) = predict(run, [scans[0]], out, device="cpu")
    stored = nib.load(target)
    corrected = np.asarray(stored.dataobj).copy()
    corrected[0, 0, 0] = 1 - min(corrected[0, 0, 0], 1)
    nib.save(nib.Nifti1Image(corrected, stored.affine), target)
    by_hand = target.read_bytes()
    for which in (run, other):
        for overwrite in (False, True):
            call = lambda w=which, o=overwrite: predict(w, [scans[0]], out, device="cpu", overwrite=o)  # noqa: E731
            refused(call, r"a\.nii\.gz: made by something unknown, or changed since it was predicted")
    assert target.read_bytes() == by_hand
    assert PredictedFolder(target.parent).weights_of(target.name) is None
    assert PredictedFolder(out).labels_of("a.nii.gz") == {"background": 0, "left": 1, "right": 2}
    target.rename(tmp_path / "mine.nii.gz")
    assert predict(run, [scans[0]], out, device="cpu") == [target]


def test_evaluation_keeps_a_map_corrected_by_hand(run: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    evaluate(copy, device="cpu")
    evaluate(copy, device="cpu")
    (target,) = (copy.predictions / f"{name}.nii.gz" for name in copy.manifest()["validation"])
    target.write_bytes(target.read_bytes() + b"\0")
    refused(lambda: evaluate(copy, device="cpu"), "changed since it was predicted")


@pytest.mark.parametrize("name", ["out1.nii", "b.nii"])
def test_a_nii_is_no_folder(run: RunFolder, scans: list[Path], tmp_path: Path, name: str) -> None:
    refused(lambda: predict(run, scans, tmp_path / name, device="cpu"), rf"label maps are written as .*{name}\.gz")
    assert not (tmp_path / name).exists()
    (tmp_path / name).mkdir()
    assert len(predict(run, scans, tmp_path / name, device="cpu")) == 2


class _KilledError(BaseException):
    """Stands for a signal that nobody catches."""


def test_killed_at_any_step_of_an_overwrite(
    run: RunFolder, other: RunFolder, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every change to the disk in turn is the last one: the old map stays until the new one is whole; both are known.

    After that the same command does what is left, without being asked to overwrite again.
    """
    out = tmp_path / "out"
    (target,) = predict(other, [scans[0]], tmp_path / "old", device="cpu")
    (new,) = predict(run, [scans[0]], tmp_path / "new", device="cpu")
    old_map, new_map = target.read_bytes(), new.read_bytes()
    assert old_map != new_map
    own = load(run, device="cpu").weights_sha256
    original, seen, limit = Path.replace, 0, 0

    def dies(self: Path, target: Path) -> Path:
        nonlocal seen
        seen += 1
        if seen == limit:
            raise _KilledError
        return original(self, target)

    outcomes: list[bool] = []
    for limit in range(1, 20):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "old", out)
        target, seen = out / "a.nii.gz", 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dies)
            try:
                predict(run, [scans[0]], out, device="cpu", overwrite=True)
            except _KilledError:
                pass
            else:
                break
        assert target.read_bytes() in (old_map, new_map)
        outcomes.append(target.read_bytes() == new_map)
        assert PredictedFolder(target.parent).weights_of(target.name) == (
            own if outcomes[-1] else load(other, device="cpu").weights_sha256
        )
        if limit > 1:  # before the first change nothing says that another prediction was begun
            predict(run, [scans[0]], out, device="cpu")
            assert target.read_bytes() == new_map
            assert {path.name for path in out.iterdir()} == {
                STAMP, "a.nii.gz", "a_instances.nii.gz", "a_instances.json",
            }  # fmt: skip
    assert outcomes == sorted(outcomes), "once the new map is there, it stays"
    assert True in outcomes
    assert False in outcomes


def test_interrupted_while_predicting(
    run: RunFolder, other: RunFolder, scans: list[Path], tmp_path: Path, monkeypatch
) -> None:
    (target,) = predict(other, [scans[0]], tmp_path, device="cpu")
    old = target.read_bytes()

    def killed(*_: object) -> None:
        raise _KilledError

    monkeypatch.setattr(predictions, "write_labels", killed)
    with pytest.raises(_KilledError):
        predict(run, [scans[0]], tmp_path, device="cpu", overwrite=True)
    assert target.read_bytes() == old


def test_what_a_killed_process_left_is_removed_once_it_is_a_day_old(
    run: RunFolder, scans: list[Path], tmp_path: Path
) -> None:
    for name, age in (("old", 2 * 24 * 3600), ("young", 60)):
        (tmp_path / "out" / f".predicting-{name}").mkdir(parents=True)
        then = time.time() - age
        os.utime(tmp_path / "out" / f".predicting-{name}", (then, then))
    predict(run, [scans[0]], tmp_path / "out", device="cpu")
    assert [path.name for path in (tmp_path / "out").glob(".predicting-*")] == [".predicting-young"]


def test_folders_of_before_the_checksums(run: RunFolder, other: RunFolder, scans: list[Path], tmp_path: Path) -> None:
    """A record with names alone is taken at its word."""
    out = tmp_path / "out"
    predict(run, scans, out, device="cpu")
    stamp = json.loads((out / STAMP).read_text())
    (out / STAMP).write_text(json.dumps({key: stamp[key] for key in ("weights_sha256", "labels")}))
    assert predict(run, scans, out, device="cpu") == []
    refused(lambda: predict(other, scans, out, device="cpu"), "made by other weights; .*--overwrite")
    assert len(predict(other, scans, out, device="cpu", overwrite=True)) == 2


def test_scores_replace_scores_alone(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = tmp_path / "dataset.json"
    precious.write_text('{"labels": {}}')
    assert main(["evaluate", str(run.path), "--device", "cpu", "--json", str(precious)]) == 2
    assert "holds no scores" in capsys.readouterr().err
    assert precious.read_text() == '{"labels": {}}'
    for _ in range(2):
        assert main(["evaluate", str(run.path), "--device", "cpu", "--json", str(tmp_path / "scores.json")]) == 0


def test_a_file_that_comes_while_others_are_predicted(run: RunFolder, scans: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"

    def comes(done: int, _: int) -> None:
        if done == 1:
            (out / "b.nii.gz").write_bytes(b"mine")

    predictor = load(run, device="cpu")
    refused(
        lambda: predictor.files(scans, out, overwrite=True, progress=comes), r"b\.nii\.gz: made by something unknown"
    )
    assert (out / "b.nii.gz").read_bytes() == b"mine"
    assert not list(out.glob(".predicting-*"))


def test_interrupted_in_the_folder_of_the_images(run: RunFolder, tmp_path: Path, monkeypatch) -> None:
    """Put in place and not yet entered: what is there is no image, and the next prediction goes on."""
    folder = tmp_path / "in"
    shutil.copytree(run.path.parent / "data" / "imagesTr", folder)
    with monkeypatch.context() as patch:
        patch.setattr(PredictedFolder, "enter", lambda *_, **__: (_ for _ in ()).throw(_KilledError()))
        with pytest.raises(_KilledError):
            predict(run, [folder], folder, device="cpu")
    assert (folder / "case_00.nii.gz").exists()
    assert len(predict(run, [folder], folder, device="cpu")) == 3  # one is there, by the record of what was to come


def test_a_corrected_map_among_the_images_is_no_image(run: RunFolder, scans: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(run.path.parent / "data" / "imagesTr", folder)
    predict(run, [folder], folder, device="cpu")
    corrected = folder / "case_00.nii.gz"
    corrected.write_bytes(corrected.read_bytes() + b"\0")
    assert len(predict(run, [folder], tmp_path / "out", device="cpu")) == 4
    plain = scans[0].parent
    predict(run, [plain], tmp_path / "plain", device="cpu")
    for path in (tmp_path / "plain").iterdir():
        shutil.copy(path, plain / (path.name if path.name == STAMP else f"seg_{path.name}"))
    record = json.loads((plain / STAMP).read_text())
    record["files"] = {f"seg_{name}": "0" * 64 for name in record["files"]}
    (plain / STAMP).write_text(json.dumps(record))
    refused(lambda: predict(run, [plain], tmp_path / "new", device="cpu"), "was predicted here and changed since")


def test_an_instance_map_of_one_case_is_not_the_label_map_of_another(run: RunFolder, scans: list[Path]) -> None:
    other = scans[1].rename(scans[1].with_name("a_instances.nii.gz"))
    refused(lambda: predict(run, [scans[0], other], scans[0].parents[1] / "out", device="cpu"), "to the same file")


def test_instances_of_other_weights_do_not_stay_beside_a_new_map(
    run: RunFolder, scans: list[Path], tmp_path: Path
) -> None:
    predict(run, [scans[0]], tmp_path, device="cpu")
    assert (tmp_path / "a_instances.json").exists()
    plain = load(run, device="cpu")
    data = plain.recipe.data.model_copy(update={"instances": None})
    without = Predictor(plain.recipe.model_copy(update={"data": data}), plain.model, plain.fingerprint, device="cpu")
    assert without.weights_sha256 != plain.weights_sha256
    without.files(scans[0], tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.glob("a*")} == {"a.nii.gz"}
    assert set(json.loads((tmp_path / STAMP).read_text())["files"]) == {"a.nii.gz"}


def test_a_users_file_named_like_an_instance_map(run: RunFolder, scans: list[Path], tmp_path: Path) -> None:
    """A run without instances leaves it alone; one with instances refuses to write there, its map known or not."""
    mine = tmp_path / "a_instances.nii.gz"
    mine.write_bytes(b"mine")
    plain = load(run, device="cpu")
    data = plain.recipe.data.model_copy(update={"instances": None})
    without = Predictor(plain.recipe.model_copy(update={"data": data}), plain.model, plain.fingerprint, device="cpu")
    for _ in range(2):
        assert len(without.files(scans[0], tmp_path, overwrite=True)) == 1
        refused(
            lambda: plain.files(scans[0], tmp_path, overwrite=True), r"a_instances\.nii\.gz: made by something unknown"
        )
    assert mine.read_bytes() == b"mine"


WRITER = """
import sys
from pathlib import Path
import numpy as np
from maskmed_zoo.data.image import geometry_of
from maskmed_zoo.inference.write import Prediction, write_prediction
from maskmed_zoo.labels import Labels
array = np.zeros((2, 3, 4), np.uint8)
for index in range(40):
    target = Path(sys.argv[1]) / f"{sys.argv[2]}_{index}.nii.gz"
    prediction = Prediction(array, None, geometry_of(array, spacing=(1, 1, 1)))
    write_prediction(target, prediction, Labels({"background": 0, "a": 1}), "w" * 64)
"""


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    """Each case of both is in the record; nobody is told that a file is not his."""
    workers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in "xy"]
    assert [worker.wait() for worker in workers] == [0, 0]
    record = json.loads((tmp_path / STAMP).read_text())
    wanted = {f"{name}_{index}.nii.gz" for name in "xy" for index in range(40)}
    assert set(record["weights_sha256"]) == set(record["files"]) == wanted
    assert "replacing" not in record


@pytest.mark.parametrize(
    "damage", ['{"labels": {"x": NaN}}', "[" * 100_000, '{"files": {"a.nii.gz": 5}}', '{"files": 5}']
)
def test_a_damaged_record_is_an_empty_one(run: RunFolder, scans: list[Path], tmp_path: Path, damage: str) -> None:
    (tmp_path / STAMP).write_text(damage)
    assert len(predict(run, [scans[0]], tmp_path, device="cpu")) == 1
