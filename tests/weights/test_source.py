"""What a training can start from: every kind of source, labels and channels by name, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from safetensors.torch import save_file
from torch import Tensor, nn

import maskmed_zoo as zoo
from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.runner.run_folder import save_model
from maskmed_zoo.weights.load import LoadReport, start_from
from maskmed_zoo.weights.source import read_source, weights_in
from tests.weights.test_wrappers import drawn

OLD = {"background": 0, "left": 1, "right": 2}
NEW = {"background": 0, "right": 1, "tumor": 2, "left": 3}
DENSE = {"model.neck": {"kind": "skip"}, "model.head": {"kind": "pointwise"}, "model.loss": {"kind": "ce_dice"}}


def made(recipe: Path, labels: dict[str, int], **settings: Any) -> SegmentationModel:
    plain = {key.replace("__", "."): value for key, value in settings.items()}
    model = zoo.create(zoo.load_recipe(recipe, {"data.labels": labels, **plain}))
    drawn(model)
    return model.eval()


def started(model: nn.Module, source: Path) -> tuple[LoadReport, dict[str, Tensor], dict[str, Tensor]]:
    """The report, and the model's tensors before and after."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    return start_from(model, source), before, model.state_dict()


def refusal(model: nn.Module, source: Path) -> str:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        start_from(model, source)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_rows(old: dict[str, Tensor], after: dict[str, Tensor]) -> int:
    """Rows of `NEW` against those of `OLD`, tensor for tensor; how many tensors have such rows."""
    found = 0
    for name, value in after.items():
        if old[name].shape == value.shape:
            assert torch.equal(value, old[name]), name
            continue
        found += 1
        assert (len(old[name]), len(value)) in {(3, 4), (4, 5)}, name
        assert torch.equal(value[[0, 1, 3]], old[name][[0, 2, 1]]), name
        torch.testing.assert_close(value[2], old[name][1] if "queries" in name else old[name].mean(0), msg=name)
        assert len(value) == 4 or torch.equal(value[4], old[name][3]), name  # "no object"
    return found


def write_run(folder: Path, recipe: Path, model: SegmentationModel, *, header: bool = True) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_bytes(recipe.read_bytes())
    path = folder / "weights_last.safetensors"
    if header:
        save_model(path, model, zoo.load_recipe(recipe))
    else:
        save_file(model.state_dict(), path)
    return folder


@pytest.mark.parametrize("header", [True, False], ids=["header", "recipe"])
def test_a_run(header: bool, tiny_recipe: Path, tmp_path: Path) -> None:
    """Its labels are those of the file's header, or of its recipe where a file has none."""
    trained = made(tiny_recipe, OLD)
    run = write_run(tmp_path / "run", tiny_recipe, trained, header=header)
    report, _, after = started(made(tiny_recipe, NEW), run)
    assert check_rows(trained.state_dict(), after) == len(report.adapted) >= 3
    assert set(report.adapted.values()) == {"classes 3 → 4, 3 by name"}
    assert (report.missing, report.unexpected) == ({}, [])


def test_an_export(exported: Path, tiny_recipe: Path) -> None:
    old = read_source(exported).tensors
    report, _, after = started(made(tiny_recipe, NEW), exported)
    assert check_rows(old, after) == len(report.adapted) >= 3


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_a_state_dict_knows_no_labels(name: str, tiny_recipe: Path, tmp_path: Path) -> None:
    """Rows of as many labels are taken as they are; of another number of them none is, but queries are."""
    trained, path = made(tiny_recipe, OLD), tmp_path / name
    old = trained.state_dict()
    save_file(old, path) if name.endswith("safetensors") else torch.save({"state_dict": old}, path)
    report, _, after = started(made(tiny_recipe, {"background": 0, "a": 1, "b": 2}), path)
    assert all(torch.equal(after[key], value) for key, value in old.items())
    assert (report.share, report.adapted, report.missing, report.unexpected) == (1, {}, {}, [])
    report, before, after = started(made(tiny_recipe, NEW), path)
    assert report.adapted == {"head.decoder.queries.0": "queries 3 → 4"}
    assert torch.equal(after["head.decoder.queries.0"][:3], old["head.decoder.queries.0"])
    assert {name.rsplit(".", 3)[0] for name in report.missing} == {"head.classifiers"}
    assert all(torch.equal(after[key], before[key]) for key in report.missing)


def nnunet_model(
    folder: Path, labels: dict[str, Any], classes: int, folds: list[str], channels: int = 1
) -> PlainConvUNet:
    """A model folder as nnU-Net leaves it; the last of `folds` has the weights of the network that is returned."""
    network = None
    for fold in folds:
        network = PlainConvUNet(
            input_channels=1,
            n_stages=3,
            features_per_stage=[4, 8, 8],
            conv_op=nn.Conv3d,
            kernel_sizes=3,
            strides=[1, 2, 2],
            n_conv_per_stage=1,
            num_classes=classes,
            n_conv_per_stage_decoder=1,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            deep_supervision=True,
        )
        file = folder / fold
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"network_weights": network.state_dict(), "current_epoch": 3, "trainer_name": "nnUNetTrainer"}, file)
    description = {"labels": labels, "channel_names": {"0": "CT"}}
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    assert network is not None
    return network


def seg_rows(network: PlainConvUNet, stage: int) -> dict[str, Tensor]:
    """What nnU-Net's layer for one of our stages, the finest first, holds."""
    layers: Any = network.decoder.seg_layers
    return layers[len(layers) - 1 - stage].state_dict()


def test_a_model_of_nnunet(tiny_recipe: Path, tmp_path: Path) -> None:
    """Labels from the dataset.json beside the folds, rows of every stage; whether a fold or the folder is given."""
    folds = ["fold_all/checkpoint_final.pth", "fold_10/checkpoint_final.pth", "fold_2/checkpoint_best.pth"]
    network = nnunet_model(tmp_path / "model", {"background": 0, "left": 1, "right": 2, "ignore": 3}, 3, folds)
    assert weights_in(tmp_path / "model") == tmp_path / "model" / "fold_2" / "checkpoint_best.pth"
    for place in ("model", "model/fold_2", "model/fold_2/checkpoint_best.pth"):
        model = made(tiny_recipe, NEW, **DENSE)
        report, _, after = started(model, tmp_path / place)
        assert report.adapted == {
            f"head.projections.{stage}.{key}": "classes 3 → 4, 3 by name"
            for stage in range(2)
            for key in ("weight", "bias")
        }
        assert (report.missing, report.unexpected) == ({}, [])
        for stage in range(2):
            for key, old in seg_rows(network, stage).items():
                name = f"head.projections.{stage}.{key}"
                assert torch.equal(after[name][[0, 1, 3]], old[[0, 2, 1]])
                torch.testing.assert_close(after[name][2], old.mean(0))
    nnunet_model(tmp_path / "model", {"background": 0}, 3, ["fold_2/checkpoint_final.pth"])
    assert weights_in(tmp_path / "model" / "fold_2").name == "checkpoint_final.pth"
    (tmp_path / "model" / "dataset.json").write_text("{", encoding="utf-8")
    assert "invalid JSON" in refusal(made(tiny_recipe, NEW, **DENSE), tmp_path / "model")


def test_regions_of_nnunet_have_no_row_for_the_background(tiny_recipe: Path, tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "right": [2]}
    network = nnunet_model(tmp_path, labels, 2, ["fold_0/checkpoint_final.pth"])
    report, _, after = started(made(tiny_recipe, NEW, **DENSE), tmp_path)
    assert set(report.adapted.values()) == {"classes 2 → 4, 1 by name"}
    for stage in range(2):
        for key, old in seg_rows(network, stage).items():
            name = f"head.projections.{stage}.{key}"
            assert torch.equal(after[name][1], old[1])
            torch.testing.assert_close(after[name][[0, 2, 3]], old.mean(0).expand_as(after[name][[0, 2, 3]]))


def test_query_head_on_a_body_of_nnunet(tiny_recipe: Path, tmp_path: Path) -> None:
    """Encoder and decoder are nnU-Net's, neck and head stay fresh, its own head is ignored, and all is told."""
    nnunet_model(tmp_path, OLD, 3, ["fold_0/checkpoint_final.pth"])
    report, before, after = started(made(tiny_recipe, NEW), tmp_path)
    assert {name.split(".")[0] for name in report.loaded} == {"encoder", "decoder"}
    assert {name.split(".")[0] for name in report.missing} == {"neck", "head"}
    assert all(torch.equal(after[name], before[name]) for name in report.missing)
    assert all(name.startswith("head.projections") for name in report.unexpected)
    first, *lines = report.summary()
    assert first.startswith(f"{len(report.loaded)} tensors loaded, 0 adapted, {len(report.missing)} fresh, 4 ignored; ")
    assert lines == [
        f"  fresh, not in the file: {next(iter(report.missing))} and {len(report.missing) - 1} more",
        f"  ignored, no place in the network: {report.unexpected[0]} and 3 more",
    ]


@pytest.mark.parametrize(
    "labels", [{"background": 0, "left": 1, "tumor": 2}, {**OLD, "tumor": 3}], ids=["other", "more"]
)
@torch.no_grad()
def test_no_query_is_given_up_while_there_is_room(labels: dict[str, int], tiny_recipe: Path, tmp_path: Path) -> None:
    """A matcher lets any query answer for any label, so the masks of a shared label hang on no query being lost."""
    trained, image = made(tiny_recipe, OLD, model__head__masked_attention="off"), torch.randn(1, 1, 8, 16, 16)
    run = write_run(tmp_path / "run", tiny_recipe, trained)
    model = made(tiny_recipe, labels, model__head__masked_attention="off")
    old, _, after = trained.state_dict(), *started(model, run)[1:]
    assert torch.equal(after["head.decoder.queries.0"][:3], old["head.decoder.queries.0"])
    if len(labels) == 3:  # the same queries: the same masks, and the same class logits of what both name
        found, due = (each(image).stages[0] for each in (model, trained))
        torch.testing.assert_close(found.masks, due.masks)
        assert found.class_logits is not None and due.class_logits is not None  # noqa: PT018
        torch.testing.assert_close(found.class_logits[..., [0, 1, 3]], due.class_logits[..., [0, 1, 3]])


def test_fewer_labels_tell_what_is_left_out(tiny_recipe: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tiny_recipe, made(tiny_recipe, OLD))
    report, *_ = started(made(tiny_recipe, {"background": 0, "right": 1}), run)
    assert report.adapted["head.decoder.queries.0"] == "classes 3 → 2, 2 by name; 1 of 3 queries left out"
    kept = made(tiny_recipe, {"background": 0, "right": 1}, model__head__num_queries=3)
    report, *_ = started(kept, run)
    assert "head.decoder.queries.0" in report.loaded


@pytest.mark.parametrize(
    ("channels", "places"),
    [(["T2", "T1"], [1, 0]), (["T1", "T2", "FLAIR"], [0, 1, None]), (["T2"], [1]), (["FLAIR", "T2"], [None, 1])],
    ids=str,
)
def test_channels_by_name(channels: list[str], places: list[int | None], tiny_recipe: Path, tmp_path: Path) -> None:
    """Those that both have keep their filters; the others add nothing at first, so that the answer stays the same."""
    recipe = tiny_recipe.with_name("two.yaml")
    recipe.write_text(tiny_recipe.read_text().replace("channels: [CT]", "channels: [T1, T2]"), encoding="utf-8")
    trained = made(recipe, OLD)
    run = write_run(tmp_path / "run", recipe, trained)
    model = made(recipe, OLD, data__channels=channels)
    report, _, after = started(model, run)
    name = "encoder.levels.0.0.conv.weight"
    shared = sum(place is not None for place in places)
    assert report.adapted == {name: f"input channels 2 → {len(channels)}, {shared} by name"}
    for channel, place in enumerate(places):
        due = torch.zeros(1) if place is None else trained.state_dict()[name][:, place]
        assert torch.equal(after[name][:, channel], due.expand_as(after[name][:, channel]))
    with torch.no_grad():
        image = torch.randn(1, 2, 8, 16, 16)
        image[:, [i for i in range(2) if i not in places]] = 0
        given = torch.stack([image[:, 0] * 9 if place is None else image[:, place] for place in places], 1)
        torch.testing.assert_close(model(given).stages[0].masks, trained(image).stages[0].masks, rtol=1e-4, atol=1e-4)


def test_channels_of_other_names_are_adapted_as_ever(tiny_recipe: Path, tmp_path: Path) -> None:
    trained = made(tiny_recipe, OLD)
    run = write_run(tmp_path / "run", tiny_recipe, trained)
    report, _, after = started(made(tiny_recipe, OLD, data__channels=["T1", "T2"]), run)
    name = "encoder.levels.0.0.conv.weight"
    assert report.adapted == {name: "input channels 1 → 2"}
    torch.testing.assert_close(after[name].sum(1, keepdim=True), trained.state_dict()[name])
    report, _, after = started(made(tiny_recipe, OLD, data__channels=["MRI"]), run)
    assert report.adapted == {}
    assert torch.equal(after[name], trained.state_dict()[name])


def test_other_widths_are_fresh_and_told(tiny_recipe: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tiny_recipe, made(tiny_recipe, OLD))
    model = made(tiny_recipe, OLD, model__head__width=24)
    report, before, after = started(model, run)
    assert {name.split(".")[0] for name in report.missing} == {"head"}
    assert report.missing["head.decoder.queries.0"] == "(3, 12) in the file, (3, 24) in the network"
    assert all(torch.equal(after[name], before[name]) for name in report.missing)
    assert any(line.startswith("  fresh, does not fit: head.") for line in report.summary())


def test_what_cannot_be_a_start(tiny_recipe: Path, tmp_path: Path) -> None:
    model = made(tiny_recipe, OLD)
    other = nn.Sequential(nn.Linear(3, 3))
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    assert "fits next to nothing of the network: 'encoder." in refusal(model, tmp_path / "other.safetensors")
    save_file({"head.classifiers.0.2.bias": torch.zeros(4)}, tmp_path / "bias.safetensors")
    assert "fits next to nothing" in refusal(model, tmp_path / "bias.safetensors")
    assert "no such file" in refusal(model, tmp_path / "none.pt")
    (tmp_path / "empty").mkdir()
    assert "or a model of nnU-Net, fold_0 with checkpoint_final.pth" in refusal(model, tmp_path / "empty")
