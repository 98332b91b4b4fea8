"""Files through a predictor: what counts as finished, shares, reading ahead and writing behind, and what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from maskmed_zoo.build import model_of
from maskmed_zoo.cli.main import main
from maskmed_zoo.data.predicted import STAMP
from maskmed_zoo.errors import ArgumentError, DataError, MemoryShortageError, OutputError
from maskmed_zoo.inference import pipeline, predict_files
from maskmed_zoo.inference.pipeline import _claimed
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.recipe import load_recipe
from tests.conftest import make_dataset, refusal

OVERRIDES = {"model.head.kind": "pointwise", "model.loss.kind": "ce_dice", "data.normalization": "zscore"}
EARLIER = Path(__file__).resolve().parents[1] / "runner" / "earlier_run"


def made(recipe: Path, **changes: object) -> Predictor:
    torch.manual_seed(0)
    loaded = load_recipe(recipe, OVERRIDES | changes)
    return Predictor(loaded, model_of(loaded), device="cpu", weights_sha256="1" * 64)


@pytest.fixture
def predictor(tiny_recipe: Path) -> Predictor:
    return made(tiny_recipe)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images."""
    return make_dataset(tmp_path / "data", cases=6) / "imagesTr"


def names(paths: list[Path]) -> list[str]:
    return [path.name.removesuffix(".nii.gz") for path in paths]


def made_there(out: Path) -> set[str]:
    """Names of all files, the hidden ones too."""
    return {path.name for path in out.iterdir()} - {STAMP}


def test_other_settings_are_another_prediction(tiny_recipe: Path, tmp_path: Path) -> None:
    images = make_dataset(tmp_path / "data", cases=2) / "imagesTr"
    plain = made(tiny_recipe)
    plain.files(images, tmp_path)
    assert made(tiny_recipe, **{"inference.batch_size": 3}).files(images, tmp_path) == []
    for changes in ({"inference.overlap": 0.25}, {"inference.mirror": True}):
        other = made(tiny_recipe, **changes)
        line = refusal(other.files, images, tmp_path)
        assert "case_00.nii.gz and 1 more: made with other settings; give another folder, or --overwrite" in line
        assert len(other.files(images, tmp_path, overwrite=True)) == 2
        assert other.files(images, tmp_path) == []
        assert "made with other settings" in refusal(plain.files, images, tmp_path)
    record = json.loads((tmp_path / STAMP).read_text())
    assert record["settings"]["case_00.nii.gz"] == {"overlap": 0.5, "mirror": ["z", "y"]}
    del record["settings"]  # as of an earlier version, which did not mirror
    (tmp_path / STAMP).write_text(json.dumps(record))
    assert plain.files(images, tmp_path) == []
    assert "made with other settings" in refusal(
        made(tiny_recipe, **{"inference.mirror": True}).files, images, tmp_path
    )


def test_an_interrupted_change_of_settings_goes_on(
    tiny_recipe: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = made(tiny_recipe), made(tiny_recipe, **{"inference.overlap": 0.25})
    image = images / "case_00_0000.nii.gz"
    one.files(image, tmp_path)
    monkeypatch.setattr("maskmed_zoo.inference.write.write_labels", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        two.files(image, tmp_path, overwrite=True)
    monkeypatch.undo()
    assert names(two.files(image, tmp_path)) == ["case_00"]


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> None:
        raise error

    return call


def test_shares_are_disjoint_and_together_all(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    parts = [predictor.files(images, tmp_path, part=(i, 4), progress=lambda *n: seen.append(n)) for i in range(1, 5)]
    assert [names(part) for part in parts] == [["case_00", "case_04"], ["case_01", "case_05"], ["case_02"], ["case_03"]]
    assert seen == [(1, 2), (2, 2), (1, 2), (2, 2), (1, 1), (1, 1)]
    assert predictor.files(images, tmp_path, part=(7, 7)) == []
    for part in ((0, 2), (3, 2), (1,), "1/2"):
        with pytest.raises(ArgumentError, match=r"part: expected \(i, n\)") as caught:
            predictor.files(images, tmp_path, part=part)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_the_next_is_read_and_the_last_written_beside(
    predictor: Predictor, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In threads of their own, and never more than one case ahead or behind."""
    events: list[tuple[str, int, bool]] = []
    counts = {"read": 0, "compute": 0, "write": 0}
    is_read, may_write = threading.Event(), threading.Event()

    def watched(what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*arguments: Any, **options: Any) -> Any:
            number = counts[what]
            counts[what] += 1
            events.append((what, number, threading.current_thread() is threading.main_thread()))
            if what == "compute" and number == 0:
                assert is_read.wait(60)  # the second image, while the first is computed
                may_write.set()
            if what == "write" and number == 0:
                assert may_write.wait(60)
            result = call(*arguments, **options)
            if what == "read" and number == 1:
                is_read.set()
            return result

        return watch

    monkeypatch.setattr(pipeline, "load_image", watched("read", pipeline.load_image))
    monkeypatch.setattr(predict_files, "write_prediction", watched("write", predict_files.write_prediction))
    monkeypatch.setattr(predictor, "segment", watched("compute", predictor.segment))
    assert len(predictor.files(images, tmp_path)) == 6
    assert {(what, is_main) for what, _, is_main in events} == {("read", False), ("compute", True), ("write", False)}
    position = {(what, number): place for place, (what, number, _) in enumerate(events)}
    for number in range(6):
        if number >= 2:
            assert position["read", number] > position["compute", number - 2]
            assert position["compute", number] > position["write", number - 2]
        assert position["write", number] > position["compute", number] > position["read", number]


def test_a_bad_case_of_each_kind_is_told_at_the_end(
    predictor: Predictor, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged, vanished since it was listed, and refused when it is written."""
    (images / "case_01_0000.nii.gz").write_bytes(b"no image")
    write, segment = predict_files.write_prediction, predictor.segment

    def picky(target: Path, *arguments: Any, **options: Any) -> None:
        if target.name == "case_03.nii.gz":
            raise DataError(f"{target}: made by other weights in the meantime")
        write(target, *arguments, **options)

    def vanishing(*arguments: Any, **options: Any) -> Any:
        (images / "case_05_0000.nii.gz").unlink(missing_ok=True)
        return segment(*arguments, **options)

    monkeypatch.setattr(predict_files, "write_prediction", picky)
    monkeypatch.setattr(predictor, "segment", vanishing)
    seen: list[tuple[int, int]] = []
    with pytest.raises(DataError) as caught:
        predictor.files(images, tmp_path / "out", progress=lambda *n: seen.append(n))
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0].split("/")[-1] for line in lines[:-1]] == [
        *("case_01_0000.nii.gz", "case_03.nii.gz", "case_05_0000.nii.gz")
    ]
    assert lines[-1] == f"3 of 6 cases cannot be used; the others are in {tmp_path / 'out'}"
    assert seen == [(i, 6) for i in range(1, 7)]
    assert made_there(tmp_path / "out") == {f"case_0{i}.nii.gz" for i in (0, 2, 4)}


def test_what_does_not_fit_beside_another_case_is_done_alone(
    predictor: Predictor, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, segment, tries = pipeline.load_image, predictor.segment, {"read": 0, "compute": 0}

    def short(*arguments: Any) -> Any:
        tries["read"] += 1
        if threading.current_thread() is not threading.main_thread():
            raise MemoryShortageError("an image needs more memory than there is")
        return load(*arguments)

    def tight(*arguments: Any, **options: Any) -> Any:
        tries["compute"] += 1
        if tries["compute"] % 2 and tries["compute"] < 11:  # the last case has nothing beside it any more
            raise MemoryShortageError("a case needs more memory than there is")
        return segment(*arguments, **options)

    monkeypatch.setattr(pipeline, "load_image", short)
    assert len(predictor.files(images, tmp_path / "read")) == 6
    assert tries["read"] == 12
    monkeypatch.setattr(pipeline, "load_image", load)
    monkeypatch.setattr(predictor, "segment", tight)
    assert len(predictor.files(images, tmp_path / "computed")) == 6
    assert tries["compute"] == 11
    monkeypatch.setattr(predictor, "segment", raising(MemoryShortageError("case: more memory than there is")))
    with pytest.raises(MemoryShortageError):
        predictor.files(images, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_what_does_not_fit_alone_is_not_tried_again(
    predictor: Predictor, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of two was already computed beside nothing: the first had left, and there was no other to read."""
    tries: list[str] = []

    def short(_image: Any, geometry: Any, **_: Any) -> None:
        tries.append(Path(geometry.source).name)
        raise MemoryShortageError("a case needs more memory than there is")

    monkeypatch.setattr(predictor, "segment", short)
    two = [images / f"case_0{i}_0000.nii.gz" for i in (0, 1)]
    with pytest.raises(MemoryShortageError):
        predictor.files(two, tmp_path / "out")
    assert tries == [two[0].name, two[0].name, two[1].name]


def test_an_output_that_cannot_be_written_ends_the_work_and_keeps_what_is_there(
    predictor: Predictor, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, segment, seen = predict_files.write_prediction, predictor.segment, []

    def full(target: Path, *arguments: Any, **options: Any) -> None:
        if target.name != "case_00.nii.gz":
            raise OutputError(f"{target}: cannot be written (No space left on device)")
        write(target, *arguments, **options)

    monkeypatch.setattr(predict_files, "write_prediction", full)
    monkeypatch.setattr(predictor, "segment", lambda *a, **k: seen.append(1) or segment(*a, **k))
    assert "No space left" in refusal(predictor.files, images, tmp_path / "out")
    assert len(seen) <= 3
    assert made_there(tmp_path / "out") == {"case_00.nii.gz"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_whole_cases(
    *, number: int, code: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What was computed is written, and nothing hidden stays."""
    segment, calls = Predictor.segment, []

    def third(self: Predictor, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return segment(self, *arguments, **options)

    monkeypatch.setattr(Predictor, "segment", third)
    words = ["predict", str(EARLIER), str(images), str(tmp_path / "out"), "--device", "cpu"]
    assert main(words) == code
    assert "Traceback" not in capsys.readouterr().err
    assert made_there(tmp_path / "out") == {"case_00.nii.gz", "case_01.nii.gz"}
    assert main(words) == 0
    assert made_there(tmp_path / "out") == {f"case_0{i}.nii.gz" for i in range(6)}


def test_a_case_that_another_process_is_at_is_waited_for(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    """And done here where it comes to nothing there."""
    out, held, order = tmp_path / "out", threading.Event(), list[str]()
    out.mkdir()

    def other() -> None:
        with _claimed(out / "case_00.nii.gz") as is_free:
            assert is_free
            held.set()
            while len([*out.glob("case_*")]) < 5 and threading.main_thread().is_alive():
                held.wait(0.01)
                threading.Event().wait(0.01)
            order.append("let go")

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    assert held.wait(60)
    written = predictor.files(images, out)
    thread.join()
    assert order == ["let go"]
    assert names(written) == [*(f"case_0{i}" for i in range(1, 6)), "case_00"]
    assert made_there(out) == {f"case_0{i}.nii.gz" for i in range(6)}


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/0", "a/b", "1/2/3", "-1/2"])
def test_a_part_that_is_none_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "run", "in", "out", f"--part={text}"]) == 2
    line = capsys.readouterr().err
    assert line == f"--part {text}: expected I/N, the I-th of N shares counted from 1, such as 2/4\n"
