"""Weights into networks: whole, fitted or refused, with a report that leaves nothing out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from safetensors.torch import save_file
from torch import nn

import maskmed_zoo as zoo
from maskmed_zoo.errors import CheckpointError, RegistryError
from maskmed_zoo.model import SegmentationModel, count_parameters
from maskmed_zoo.weights import published as published_module
from maskmed_zoo.weights.adapt import Context, adapt
from maskmed_zoo.weights.keys import prefixed

SWIN = {
    "model.encoder": {"kind": "swin_unetr", "feature_size": 12, "window_size": 4},
    "model.neck": {"kind": "skip"},
    "model.decoder": {"kind": "unetr_up", "stages": 1},
    "model.head": {"kind": "pointwise"},
    "model.loss": {"kind": "ce_dice", "supervise_lowest": True},
    "data.channels": ["CT"],
    "data.labels": {"background": 0, "left": 1, "right": 2},
}


def swin(**data: object) -> SegmentationModel:
    return zoo.create(zoo.load_recipe("swin_unetr_amos", SWIN | {f"data.{k}": v for k, v in data.items()}))


def tiny(recipe: Path, **data: object) -> SegmentationModel:
    return zoo.create(zoo.load_recipe(recipe, {f"data.{key}": value for key, value in data.items()}))


def refusal(model: nn.Module, source: object, **options: object) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        zoo.load_weights(model, source, **options)  # pyright: ignore
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save(model: nn.Module, path: Path, names: list[str] | None = None) -> Path:
    import json

    save_file(model.state_dict(), path, {} if names is None else {"class_names": json.dumps(names)})
    return path


@pytest.fixture(scope="module")
def theirs() -> SwinUNETR:
    torch.manual_seed(0)
    network = SwinUNETR(1, 3, feature_size=12, window_size=4).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return network


@pytest.mark.parametrize("prefix", ["", "module."])
def test_swin_unetr_of_monai_gives_its_own_output(theirs: SwinUNETR, prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "swin.pt"
    torch.save({"state_dict": {prefix + name: value for name, value in theirs.state_dict().items()}}, path)
    model = swin().eval()
    report = zoo.load_weights(model, path)
    assert report.share == 1
    assert (report.adapted, report.missing, report.unexpected) == ({}, {}, [])
    image = torch.randn(1, 1, 32, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(image).stages[0].logits, theirs(image), rtol=1e-4, atol=1e-4)


def test_the_second_version_of_swin_unetr() -> None:
    torch.manual_seed(0)
    network = SwinUNETR(1, 3, feature_size=12, window_size=4, use_v2=True).eval()
    encoder = {**SWIN["model.encoder"], "version": "v2"}  # type: ignore[dict-item]
    model = zoo.create(zoo.load_recipe("swin_unetr_amos", SWIN | {"model.encoder": encoder})).eval()
    assert zoo.load_weights(model, network.state_dict()).share == 1
    image = torch.randn(1, 1, 32, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(image).stages[0].logits, network(image), rtol=1e-4, atol=1e-4)


def test_swin_unetr_for_other_channels_labels_and_windows(theirs: SwinUNETR) -> None:
    settings = SWIN | {"model.encoder": {**SWIN["model.encoder"], "window_size": 7}}  # type: ignore[dict-item]
    settings |= {"data.channels": ["T1", "T2"], "data.labels": {"background": 0, "a": 1, "b": 2, "c": 3}}
    model = zoo.create(zoo.load_recipe("swin_unetr_amos", settings))
    state = dict(theirs.state_dict())
    assert "to adapt" in refusal(model, state)
    report = zoo.load_weights(model, state, strict=False)
    assert set(report.missing) == {"head.projections.0.weight", "head.projections.0.bias"}
    assert report.unexpected == []
    hows = set(report.adapted.values())
    assert hows == {"input channels 1 → 2", "positions 7³ → 13³"}
    assert 0.95 < report.share < 1
    first = model.state_dict()["encoder.swin.patch_embed.proj.weight"]
    torch.testing.assert_close(first.sum(1, keepdim=True), state["swinViT.patch_embed.proj.weight"])


def test_a_self_supervised_swin_fills_the_encoder_alone(theirs: SwinUNETR) -> None:
    """As MONAI's `model_swinvit.pt`: the transformer alone, `module.` before and `fc1` for `linear1`."""
    state = {
        "module." + name.removeprefix("swinViT.").replace("linear", "fc"): value
        for name, value in theirs.state_dict().items()
        if name.startswith("swinViT.")
    }
    model = swin()
    assert "less than 99%" in refusal(model, state, strict=False, minimum=0.99)
    report = zoo.load_weights(model, state, strict=False, minimum=0.1)
    assert report.loaded
    assert all(name.startswith("encoder.swin.") for name in report.loaded)
    assert report.unexpected == []
    assert {n.split(".")[0] for n in report.missing} == {"encoder", "decoder", "head"}
    assert not [n for n in report.missing if n.startswith("encoder.swin.")]


def test_round_trip_and_the_first_wrong_parameter(tiny_recipe: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = tiny(tiny_recipe)
    path = save(model, tmp_path / "own.safetensors", ["background", "left", "right"])
    again = zoo.create(tiny_recipe, pretrained=path)
    image = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(again.eval().predict(image), model.eval().predict(image))
    wide = zoo.create(tiny_recipe, model__head__width=24)
    message = refusal(wide, path)
    assert "is missing: (3, 12) in the file, (3, 24) in the network" in message
    assert "unexpected" in message
    assert "these are the weights of another network" in refusal(wide, path, strict=False, minimum=0.9)
    surplus = dict(model.state_dict()) | {"extra.weight": torch.zeros(1)}
    assert "'extra.weight' has no place" in refusal(tiny(tiny_recipe), surplus)


def test_labels_are_matched_by_name(tiny_recipe: Path, tmp_path: Path) -> None:
    model = tiny(tiny_recipe)
    path = save(model, tmp_path / "own.safetensors", ["background", "left", "right"])
    more = tiny(tiny_recipe, labels={"background": 0, "right": 1, "new": 2, "left": 3})
    report = zoo.load_weights(more, path, strict=False)
    old, new = model.state_dict(), more.state_dict()
    assert report.missing == {}
    assert len(report.adapted) >= 3  # queries, and the classifiers' weights and biases
    for name, how in report.adapted.items():
        assert how == "classes 3 → 4, 3 by name"
        assert torch.equal(new[name][[0, 1, 3]], old[name][[0, 2, 1]])
        own = old[name][1] if name == "head.decoder.queries.0" else old[name].mean(0)
        torch.testing.assert_close(new[name][2], own)
        if len(new[name]) == 5:
            assert torch.equal(new[name][4], old[name][3])  # "no object"
    assert report.share < 1  # the rows of the new label are not the file's
    rows = sum(new[name].numel() // len(new[name]) for name in report.adapted)
    total = sum(value.numel() for value in new.values())
    assert report.share == pytest.approx(1 - rows / total, abs=1e-9)


def test_report_counts_everything(tiny_recipe: Path) -> None:
    model = tiny(tiny_recipe)
    state = dict(model.state_dict())
    taken = state.pop("encoder.levels.0.0.conv.weight")
    message = refusal(model, state | {"encoder.levels.0.0.conv.weight": taken.int()})
    assert "torch.int32 in the file, torch.float32 in the network" in message
    report = zoo.load_weights(model, state | {"other": taken}, strict=False)
    assert len(report.loaded) == len(state)
    assert report.missing == {"encoder.levels.0.0.conv.weight": "not in the file"}
    assert report.unexpected == ["other"]
    total = count_parameters(model.parameters())
    assert report.share == pytest.approx(1 - taken.numel() / total, abs=1e-3)
    assert "1 missing, 1 unexpected" in str(report)


def test_timm_weights_into_a_module_under_a_prefix(tmp_path: Path) -> None:
    """As an encoder that holds a timm network: a prefix, no classifier, more input channels."""
    timm = pytest.importorskip("timm")
    whole = timm.create_model("resnet10t", pretrained=False)
    path = tmp_path / "timm.safetensors"
    save_file(whole.state_dict(), path)

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = timm.create_model("resnet10t", features_only=True)

    holder = Holder()
    assert "'net.fc.bias' has no place" in refusal(holder, path, keys=prefixed("net."))
    report = zoo.load_weights(holder, path, keys=prefixed("net."), strict=False)
    assert sorted(report.unexpected) == ["net.fc.bias", "net.fc.weight"]
    assert (report.missing, report.share) == ({}, 1)


def test_a_child_called_module_keeps_its_name() -> None:
    holder = nn.ModuleDict({"module": nn.Linear(2, 2)})
    assert zoo.load_weights(holder, holder.state_dict()).share == 1


def test_only_known_differences_are_adapted() -> None:
    context = Context(2, ("background", "a"), ("background", "a", "b"))
    assert adapt("x", torch.zeros(4, 6), torch.zeros(6, 4), context) is None
    assert adapt("x", torch.zeros(4, 1, 3, 3, 3), torch.zeros(4, 3, 3, 3, 3), context) is None  # not the input
    assert adapt("x", torch.zeros(5), torch.zeros(6), context) is None  # not the labels
    assert adapt("x.relative_position_bias_table", torch.zeros(10, 2), torch.zeros(27, 2), context) is None
    table = torch.arange(8.0).view(1, 8, 1)
    fitted = adapt("x.position_embeddings", table, torch.zeros(1, 27, 1), context)
    assert fitted is not None
    assert fitted[0][0, [0, 13, 26], 0].tolist() == [0, 3.5, 7]


def test_published_weights(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegistryError, match="no weights are published for 'maskmed_amos'"):
        zoo.create("maskmed_amos", pretrained=True)
    asked: list[tuple[str, int, str]] = []

    def fetched(url: str, target: Path, *, size: int, sha256: str) -> Path:
        asked.append((url, size, sha256))
        return save(tiny(tiny_recipe), tmp_path / target.name)

    monkeypatch.setattr(published_module, "fetch", fetched)
    card = zoo.registry.card("maskmed_phantom", "model")  # pyright: ignore
    monkeypatch.setitem(card.facts, "weights", {"url": "https://x/y", "size": 7, "sha256": "ab" * 32})
    monkeypatch.setattr(published_module, "cache_folder", lambda: tmp_path / "cache")
    assert published_module.published("maskmed_phantom").name == "maskmed_phantom.safetensors"
    assert asked == [("https://x/y", 7, "ab" * 32)]
    monkeypatch.setitem(card.facts, "weights", {"url": "https://x/y"})
    with pytest.raises(RegistryError, match="needs url, size and sha256"):
        published_module.published("maskmed_phantom")


def test_a_network_made_from_part_of_a_file_says_so(tiny_recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`create` returns the network alone, so that its report is logged."""
    state = zoo.create(tiny_recipe).state_dict()
    dropped = next(iter(state))
    path = tiny_recipe.with_name("part.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in state.items() if name != dropped}, path)
    zoo.create(tiny_recipe, pretrained=path, strict=False)
    assert f"missing {dropped}: not in the file" in caplog.text


def test_a_run_is_no_exported_folder(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="so no exported weights; give a file, a run or an exported folder"):
        zoo.create(tiny_recipe, pretrained=tmp_path)
