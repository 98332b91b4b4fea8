"""A whole pipeline leaves the package: its program and its graph say what the network says, and tell nothing else.

The runner is used as it is shipped: loaded from the exported folder, beside the label maps of `predict`.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from jsonschema import Draft202012Validator

import maskmed_zoo as zoo
from maskmed_zoo.data.formats import read_image
from maskmed_zoo.errors import ArgumentError, UserError
from maskmed_zoo.export import onnx_graph, program
from maskmed_zoo.export.export import export
from maskmed_zoo.export.formats import onnx as onnx_format
from maskmed_zoo.export.pipeline import Pipeline
from maskmed_zoo.files import sha256_of
from maskmed_zoo.inference.postprocessing import Postprocessing, Step
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.weights.card import POSTPROCESSING, check_exported
from tests.conftest import make_dataset, write_nifti
from tests.weights.conftest import one_line

ROOT = Path(__file__).resolve().parents[2]
RUN = RunFolder(ROOT / "tests/runner/earlier_run")
SCHEMA = ROOT / "docs/reference/pipeline.schema.json"
ALONE = """
import sys, torch
network, image = torch.export.load(sys.argv[1]).module(), torch.load(sys.argv[2], weights_only=True)
torch.save(network(image), sys.argv[3])
assert "maskmed_zoo" not in sys.modules
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The run as an ONNX pipeline."""
    path = tmp_path_factory.mktemp("export") / "onnx"
    export(RUN, path, license="MIT", format="onnx")
    return path


@pytest.fixture(scope="module")
def program_folder(tmp_path_factory):
    """The run as a program of `torch.export`."""
    path = tmp_path_factory.mktemp("export") / "torch"
    export(RUN, path, license="MIT", format="torch")
    return path


def load_runner(folder):
    """The runner of an exported folder, as a module."""
    spec = importlib.util.spec_from_file_location("shipped_runner", folder / "predict_onnx.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def shipped(folder):
    """The runner of the exported run."""
    return load_runner(folder)


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def test_the_runner_writes_the_label_maps_of_predict(folder, shipped, tmp_path, capsys):
    data = make_dataset(tmp_path / "data", cases=3)
    spread = nib.load(data / "imagesTr/case_00_0000.nii.gz")  # another spacing, resampled there and back
    turned = np.array([[0, 1.4, 0, 3], [0.7, 0, 0, 5], [0, 0, -3.0, 7], [0, 0, 0, 1]])
    write_nifti(data / "imagesTr/spread_0000.nii.gz", np.asarray(spread.dataobj), turned)
    assert shipped.main([str(data / "imagesTr"), str(tmp_path / "ours"), "--threads", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    for theirs in zoo.load(RUN.path, device="cpu").files(data / "imagesTr", tmp_path / "theirs"):
        ours = tmp_path / "ours" / theirs.name
        expected = voxels(theirs)
        assert len(np.unique(expected)) == 3
        assert (voxels(ours) != expected).mean() < 1e-3
        assert nib.load(ours).header == nib.load(theirs).header
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == sorted(
        path.name for path in (tmp_path / "theirs").glob("*.nii.gz")
    )
    before = (tmp_path / "ours/case_00.nii.gz").stat().st_mtime_ns
    assert shipped.main([str(data / "imagesTr"), str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().err.count("exists already, skipped") == 4
    assert (tmp_path / "ours/case_00.nii.gz").stat().st_mtime_ns == before


def test_a_case_that_cannot_be_used_does_not_stop_the_others(shipped, folder, tmp_path, capsys):
    images = make_dataset(tmp_path / "data", cases=3) / "imagesTr"
    image = nib.load(images / "case_00_0000.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.complex64), image.affine), images / "case_00_0000.nii.gz")
    content = bytearray(gzip.decompress((images / "case_01_0000.nii.gz").read_bytes()))
    content[70:72] = b"\x09\x03"  # no type of voxels
    (images / "case_01_0000.nii.gz").write_bytes(gzip.compress(bytes(content)))
    assert shipped.main([str(images), str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out' / 'case_02.nii.gz'}\n"
    assert [line.split(":")[0] for line in err.splitlines()] == ["case 'case_00'", "case 'case_01'"]
    (tmp_path / "none").mkdir()
    shutil.copy(folder / "pipeline.json", tmp_path / "none")
    with pytest.raises(shipped.MistakeError, match=r"network\.onnx: cannot be used"):
        shipped.Runner(tmp_path / "none")


def test_flips_are_averaged(shipped, folder):
    runner = shipped.Runner(threads=1)
    windows = np.random.default_rng(0).normal(size=(2, 1, 8, 16, 16)).astype(np.float32)
    plain = runner.run(windows)
    runner.windows["mirrored"] = ["z", "x"]
    model = zoo.load(RUN.path, device="cpu").model
    image, total = torch.from_numpy(windows), torch.zeros(plain.shape)
    for flip in [(), (2,), (4,), (2, 4)]:
        with torch.inference_mode():
            total += model.predict(image.flip(flip)).exp().flip(flip) / 4
    np.testing.assert_allclose(runner.run(windows), total, atol=1e-5)
    assert np.abs(plain - total.numpy()).max() > 1e-3


def chosen_steps(run: Path, *steps: dict[str, object]) -> list[dict[str, object]]:
    """Post-processing as `postprocess` leaves it in a run."""
    content = {"format": "maskmed-zoo postprocessing 1", "steps": [{"below_mm3": None} | step for step in steps]}
    content["weights_sha256"] = sha256_of(run / "weights_last.safetensors")
    (run / POSTPROCESSING).write_text(json.dumps(content), encoding="utf-8")
    return content["steps"]


def test_the_runner_mirrors_and_post_processes_as_predict(folder, tmp_path, monkeypatch):
    run, names = tmp_path / "run", RUN.recipe().labels.names
    shutil.copytree(RUN.path, run)
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    (run / "recipe.yaml").write_text(recipe.replace("inference: {", "inference: {mirror: true, "), encoding="utf-8")
    chosen_steps(
        run,
        {"label": names[1], "do": "remove_small", "below_mm3": 40.0},
        {"label": names[1], "do": "fill_holes"},
        {"label": names[2], "do": "keep_largest"},
    )
    images, rng = make_dataset(tmp_path / "data", cases=3) / "imagesTr", np.random.default_rng(0)
    for path in images.iterdir():  # specks and holes
        image = nib.load(path)
        noisy = np.asarray(image.dataobj) + 120 * rng.normal(size=image.shape).astype(np.float32)
        write_nifti(path, noisy, image.affine)
    maps = {}
    ways = {"theirs": {}, "plain": {"inference__mirror": False}, "raw": {"postprocess": False}}
    for name, how in ways.items():
        written = zoo.load(run, device="cpu", **how).files(images, tmp_path / name)
        maps[name] = np.concatenate([voxels(path).ravel() for path in written])
    monkeypatch.setattr(onnx_format, "program_of", lambda *_: None)  # the network is that of `folder`
    monkeypatch.setattr(onnx_format, "write_graph", lambda _, to, **__: shutil.copy(folder / "network.onnx", to))
    export(RunFolder(run), tmp_path / "exported", license="MIT", format="onnx")
    spec = json.loads((tmp_path / "exported/pipeline.json").read_text(encoding="utf-8"))
    assert spec["windows"]["mirrored"] == ["z", "y"]
    assert len(spec["postprocessing"]) == 3
    assert load_runner(tmp_path / "exported").main([str(images), str(tmp_path / "ours"), "--threads", "1"]) == 0
    ours = np.concatenate([voxels(path).ravel() for path in sorted((tmp_path / "ours").iterdir())])
    assert (ours != maps["theirs"]).mean() < 1e-4
    for other in ("plain", "raw"):
        assert (maps[other] != maps["theirs"]).mean() > 1e-3, other


def test_thresholds_come_before_the_most_probable_label(shipped, tmp_path):
    (image, *_) = sorted((make_dataset(tmp_path / "data", cases=1) / "imagesTr").iterdir())
    runner, predictor = shipped.Runner(threads=1), zoo.load(RUN.path, device="cpu")
    volume = read_image(image)
    spacing, names = volume.geometry.spacing, predictor.labels.names
    plain = predictor.segment(volume.array, volume.geometry).labels
    steps = (Step(label=names[1], do="threshold", at=0.1), Step(label=names[1], do="keep_largest"))
    runner.steps["postprocessing"] = [step.model_dump() for step in steps]
    predictor.postprocessing = Postprocessing(steps, predictor.labels.foreground)
    expected = predictor.segment(volume.array, volume.geometry).labels
    array = volume.array if volume.array.ndim == 4 else volume.array[None]
    assert (runner.segment(array, spacing) != expected).mean() < 1e-3
    assert (plain != expected).mean() > 1e-2


def test_what_was_chosen_after_the_network_comes_along(tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(RUN.path, run)
    (step,) = chosen_steps(run, {"label": RUN.recipe().labels.names[1], "do": "keep_largest"})
    export(RunFolder(run), tmp_path / "weights", license="MIT")
    assert zoo.load(tmp_path / "weights", device="cpu").settings["postprocessing"] == [step]
    steps = (Step.model_validate(step),)
    recipe = zoo.load_recipe(RUN.recipe(), {"inference.mirror": True, "data.mirror_axes": ["z"]})
    pipeline = Pipeline.of(recipe, RUN.fingerprint(), steps, file="network.onnx", stored="float32")
    assert pipeline.windows.mirrored == ("z",)
    assert pipeline.model_dump(mode="json")["postprocessing"] == [step | {"at": None}]
    of_others = json.loads((run / POSTPROCESSING).read_text(encoding="utf-8")) | {"weights_sha256": "0" * 64}
    (run / POSTPROCESSING).write_text(json.dumps(of_others), encoding="utf-8")
    export(RunFolder(run), tmp_path / "without", license="MIT")
    assert "chosen for other weights than are exported, so it is left out" in caplog.text
    assert not (tmp_path / "without" / POSTPROCESSING).exists()


def test_the_folder_tells_no_place_and_still_loads(folder, program_folder):
    for path, network in ((folder, "network.onnx"), (program_folder, "network.pt2")):
        names = {"README.md", "card.json", "pipeline.json", "recipe.yaml", "weights.safetensors", network}
        names |= {"predict_onnx.py"} if path is folder else set()
        assert {file.name for file in path.iterdir()} == names
        assert set(check_exported(path)["files"]) == names - {"card.json"}
        content = b"".join(file.read_bytes() for file in path.iterdir())
        assert not [place for place in (str(ROOT), "site-packages", sys.prefix) if place.encode() in content]
        assert network in (path / "README.md").read_text(encoding="utf-8")
        loaded, trained = (zoo.load(place, device="cpu").model.state_dict() for place in (path, RUN.path))
        assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())


def test_pipeline_follows_its_schema(folder, program_folder):
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert schema == Pipeline.model_json_schema(mode="serialization"), (
        "write it anew: python -m maskmed_zoo.export.pipeline > docs/reference/pipeline.schema.json"
    )
    for path in (folder, program_folder):
        written = json.loads((path / "pipeline.json").read_text(encoding="utf-8"))
        Draft202012Validator(schema).validate(written)
        assert written["normalization"][0]["shift"] == RUN.fingerprint()[0].mean
        assert written["windows"]["patch_size"] == [8, 16, 16]


def test_the_saved_program_needs_pytorch_alone(program_folder, tmp_path):
    image = torch.randn(3, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.save(image, tmp_path / "image.pt")
    words = [program_folder / "network.pt2", tmp_path / "image.pt", tmp_path / "output.pt"]
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", ALONE, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        expected = zoo.load(RUN.path, device="cpu").model.predict(image)
    torch.testing.assert_close(torch.load(tmp_path / "output.pt"), expected, rtol=1e-4, atol=1e-4)


def test_weights_in_16_bits(folder, tmp_path):
    graph = onnx.load(folder / "network.onnx")
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.full(64, 1e6, np.float32), "too_large"))
    stored = sum(np.prod(t.dims) for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    onnx_graph.halve(graph, onnx)
    kinds = [(t.data_type, int(np.prod(t.dims))) for t in graph.graph.initializer]
    halved = sum(n for kind, n in kinds if kind == onnx.TensorProto.FLOAT16)
    assert halved > stored / 2
    assert "too_large" in {t.name for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert not [n for kind, n in kinds if kind == onnx.TensorProto.FLOAT and n >= onnx_graph.SMALL and n != 64]
    onnx.checker.check_model(graph)
    onnx.save_model(graph, str(tmp_path / "half.onnx"))
    model = zoo.load(RUN.path, device="cpu").model
    session = onnx_graph.Session(tmp_path / "half.onnx")
    program.check(session, model, (8, 16, 16), "half.onnx", is_rounded=True)
    image = torch.randn(1, 1, 8, 16, 16)
    assert not torch.equal(session(image), onnx_graph.Session(folder / "network.onnx")(image))


def test_mistakes_are_one_line_and_nothing_is_left(tmp_path, monkeypatch):
    out = tmp_path / "out"

    def refused(error: type[UserError] = ArgumentError, **words):
        message = one_line(export, RUN, out, license="MIT", **words)
        assert not list(tmp_path.iterdir())
        with pytest.raises(error):
            export(RUN, out, license="MIT", **words)
        return message

    assert "format 'torch' stores weights as they are; take onnx" in refused(format="torch", fp16=True)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        assert "pip install 'maskmed-zoo[onnx]' (onnxscript is missing)" in refused(UserError, format="onnx")
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "export", lambda *_, **__: 1 / 0)
        assert "cannot be exported as 'torch' (ZeroDivisionError: division by zero)" in refused(format="torch")
    recipe = RUN.recipe().model_copy(update={"data": RUN.recipe().data.model_copy(update={"instances": "map"})})
    with pytest.raises(ArgumentError, match=r"data\.instances: separate objects"):
        Pipeline.of(recipe, RUN.fingerprint(), file="network.onnx", stored="float32")


def test_a_graph_that_says_something_else_is_refused():
    model = zoo.load(RUN.path, device="cpu").model
    message = one_line(program.check, lambda image: model.predict(image + 1), model, (8, 16, 16), "network.onnx")
    assert "network.onnx: its probabilities differ from the network's by more than 0.001 in" in message


class Pooling(torch.nn.Module):
    """In the place of a network."""

    in_channels = 2

    def predict(self, image):
        sizes = [(3, 6, 2), (7, 2, 5), (1, 1, 1), (4, 9, 3)]
        pooled = [F.adaptive_avg_pool3d(image, size) + F.adaptive_max_pool3d(image, size) for size in sizes]
        return torch.stack([(part**2).sum((2, 3, 4)) for part in pooled])


def test_adaptive_pooling_is_in_no_program(tmp_path):
    made = program.program_of(cast(SegmentationModel, Pooling()), (7, 6, 5))
    assert not [str(n.target) for n in made.graph.nodes if "adaptive" in str(n.target)]
    onnx_graph.write_graph(made, tmp_path / "network.onnx", fp16=False)
    image = torch.randn(2, 2, 7, 6, 5)
    expected = Pooling().predict(image)
    torch.testing.assert_close(made.module()(image), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(onnx_graph.Session(tmp_path / "network.onnx")(image), expected, rtol=1e-5, atol=1e-5)


def test_a_network_that_is_ended_from_within():
    """Of MONAI, nested: what comes after its coarsest level is not run."""
    arguments = {"channels": [4, 8, 8], "strides": [2, 2]}
    recipe = {"model.encoder": {"kind": "monai", "network": "UNet", "arguments": arguments}}
    model = zoo.create(zoo.load_recipe("pointwise_hippocampus_cpu", recipe)).eval()
    program.check(program.program_of(model, (8, 16, 16)).module(), model, (8, 16, 16), "program")


def test_what_the_runner_refuses(folder, shipped, tmp_path, capsys):
    good = tmp_path / "in/good_0000.nii.gz"
    write_nifti(good, np.ones((4, 4, 4), np.float32), np.eye(4))
    write_nifti(tmp_path / "in/nan_0000.nii.gz", np.full((4, 4, 4), np.nan, np.float32), np.eye(4))
    write_nifti(tmp_path / "in/flat_0000.nii.gz", np.ones((4, 4), np.float32), np.eye(4))
    (tmp_path / "in/cut_0000.nii.gz").write_bytes(good.read_bytes()[:-20])
    assert shipped.main([str(tmp_path / "in"), str(tmp_path / "out"), "--threads", "1"]) == 2
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'out/good.nii.gz'}\n"
    lines = sorted(said.err.splitlines())
    assert [line.split("'")[1] for line in lines] == ["cut", "flat", "nan"]
    assert "expected a 3-D image" in lines[1]
    assert "holds NaN or infinity" in lines[2]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.nii.gz"]
    (tmp_path / "channels").mkdir()
    shutil.copy(good, tmp_path / "channels/a_0000.nii.gz")
    shutil.copy(good, tmp_path / "channels/a_0001.nii.gz")
    (tmp_path / "a.mha").touch()
    for inputs, out, words in (
        ([tmp_path / "none"], "one.nii.gz", "no such file or folder"),
        ([good, tmp_path / "a.mha"], "out", "a.mha: no .nii or .nii.gz file; give NIfTI images"),
        ([tmp_path / "channels"], "out", "(a_0000.nii.gz, a_0001.nii.gz), expected 1 (CT), numbered from _0000"),
        ([good, tmp_path / "channels/a_0000.nii.gz"], "one.nii.gz", "one output file for 2 cases"),
        ([good], "one.nii", "label maps are written as .nii.gz"),
    ):
        assert shipped.main([*map(str, inputs), str(tmp_path / out)]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    runner = shipped.Runner(str(folder), threads=1)
    for image, spacing, words in (
        (np.ones((2, 4, 4, 4)), (1, 1, 1), r"image of shape \(2, 4, 4, 4\): expected \(c z y x\), c of CT"),
        (np.full((1, 4, 4, 4), np.inf), (1, 1, 1), "NaN or infinity"),
        (np.ones((1, 4, 4, 4)), (1, 0, 1), r"spacing \[1, 0, 1\]: expected three positive numbers"),
    ):
        with pytest.raises(shipped.MistakeError, match=words):
            runner.segment(image, spacing)
    steps = json.loads((folder / "pipeline.json").read_text(encoding="utf-8"))
    unlike = steps | {"format": 1}
    for content, words in ((unlike, "of another version"), ([1], "cannot be read"), ({"format": 2}, "cannot be read")):
        (tmp_path / "pipeline.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(shipped.MistakeError, match=words):
            shipped.Runner(tmp_path)


def test_a_missing_package_is_told_in_one_line(folder):
    """As a user sees it who has Python alone."""
    words = [sys.executable, "-I", "-S", folder / "predict_onnx.py", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "No module named 'nibabel'; pip install numpy scipy nibabel onnxruntime\n"
