"""timm's 2-D networks made 3-D: on a volume that is constant along z they say what timm's say on the slice."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from maskmed_zoo.adapters.inflate import inflate_kernel
from maskmed_zoo.adapters.timm_backbone import WHOLE
from maskmed_zoo.encoders.timm import TimmConfig, TimmEncoder
from maskmed_zoo.errors import CheckpointError, JointError

SLICE = (32, 64)
# Batch norm, group convolutions, an averaged shortcut, both kinds of squeeze-and-excitation; layer norm with a linear
# and a convolutional MLP, response norm; class token, registers, no prefix and no position of the prefix.
CONVOLUTIONAL = (
    "test_resnet", "resnet26d", "seresnext26d_32x4d", "test_convnext", "test_convnext2", "convnextv2_atto",
    "test_efficientnet", "efficientnetv2_rw_t",
)  # fmt: skip
VITS = ("test_vit", "test_vit2", "test_vit3", "vit_tiny_patch16_224")
SWINS = ("swin_tiny_patch4_window7_224",)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def encoder(backbone: str, seed: int = 0, channels: int = 1, **settings) -> TimmEncoder:
    torch.manual_seed(seed)
    return TimmEncoder(in_channels=channels, config=TimmConfig(backbone=backbone, **settings)).eval()


def two_d(backbone: str, seed: int = 0) -> Any:
    """The 2-D network with the same weights, made by timm alone."""
    torch.manual_seed(seed)
    whole = next((s for family, s in WHOLE.items() if family[:3] == backbone[:3]), None)
    whole = WHOLE["vision_transformer"] if backbone in VITS else whole
    settings: dict[str, Any] = {"features_only": True} if whole is None else {"num_classes": 0, **whole}
    return timm.create_model(backbone, in_chans=1, drop_path_rate=0.0, **settings).eval()


def images(depth: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(1, 1, *SLICE, generator=generator)
    return image, image.unsqueeze(2).expand(-1, -1, depth, -1, -1)


def check_slices(volume: Tensor, plane: Tensor, inner: int = 0) -> None:
    """(b c d h w) shows (b c h w) in every slice but the outermost `inner`."""
    depth = volume.shape[2]
    seen = volume[:, :, inner : depth - inner]
    assert seen.shape[2] > 0
    assert plane.std() > 1e-4
    torch.testing.assert_close(seen, plane.unsqueeze(2).expand_as(seen), rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("backbone", CONVOLUTIONAL)
def test_convolutional(backbone):
    image, volume = images()
    expected, levels = two_d(backbone)(image), encoder(backbone)(volume)
    assert len(levels) == 1 + len(expected)
    for level, plane in zip(levels[1:], expected, strict=True):
        check_slices(level, plane)


@torch.no_grad()
@pytest.mark.parametrize("backbone", VITS)
def test_vision_transformers(backbone):
    """Through the position table of another size than the image, and with prefix tokens."""
    image, volume = images()
    body: Any = encoder(backbone).body
    expected = two_d(backbone).forward_intermediates(image, indices=list(body.vit.taps), intermediates_only=True)
    for level, plane in zip(body.vit(volume), expected, strict=True):
        check_slices(level, plane)


@torch.no_grad()
@pytest.mark.parametrize("backbone", SWINS)
def test_swin_transformers(backbone):
    """With shifted windows, also along z, and maps that the windows do not divide."""
    image, volume = images(64)
    expected = two_d(backbone).forward_intermediates(image, intermediates_only=True)
    for level, plane in zip(encoder(backbone, z_kernel=5)(volume)[1:], expected, strict=True):
        check_slices(level, plane)


@torch.no_grad()
@pytest.mark.parametrize(("backbone", "inner"), [("test_resnet", (4, 4, 3)), ("test_convnext", (2, 2, 2))])
def test_mean_inflation_away_from_the_border(backbone, inner):
    """Zeros pad the volume along z, so near its ends the spread kernel sees less than the 2-D one."""
    image, volume = images(96)
    expected, levels = two_d(backbone)(image), encoder(backbone, inflation="mean")(volume)
    for level, plane, border in zip(levels[1:], expected, inner, strict=False):
        check_slices(level, plane, border)
    with pytest.raises(AssertionError):
        check_slices(levels[2], expected[1])


@torch.no_grad()
@pytest.mark.parametrize(
    ("backbone", "z_factors", "strides"),
    [
        ("test_resnet", (1, 1, 2, 1, 2), (1, 1, 1, 2, 2, 4)),
        ("test_convnext", (2, 1, 2, 1), (1, 2, 2, 4, 4)),
        ("test_efficientnet", (1, 2, 1, 1, 1), (1, 1, 2, 2, 2, 2)),
        ("test_vit", (4,), (1, 1, 1, 2, 4)),
        ("swin_tiny_patch4_window7_224", (1, 1, 2, 1), (1, 1, 1, 2, 2)),
    ],
)
def test_strides_along_z(backbone, z_factors, strides):
    image, volume = images(8)
    built = encoder(backbone, z_factors=z_factors)
    assert tuple(stride[0] for stride in built.out_spec.strides) == strides
    levels = built(volume)
    assert [x.shape[2:] for x in levels] == [torch.Size(s) for s in built.out_spec.sizes((8, *SLICE))]
    if "vit" not in backbone:
        network = two_d(backbone)
        whole = backbone in SWINS
        expected = network.forward_intermediates(image, intermediates_only=True) if whole else network(image)
        check_slices(levels[-1], expected[-1])


def test_kernels():
    weight = torch.randn(3, 2, 3, 3)
    assert torch.equal(inflate_kernel(weight, 3, "center")[:, :, 1], weight)
    assert inflate_kernel(weight, 3, "center")[:, :, ::2].abs().max() == 0
    torch.testing.assert_close(inflate_kernel(weight, 5, "mean").sum(2), weight)
    depths = {m.kernel_size[0] for m in encoder("convnext_atto", z_kernel=5).modules() if isinstance(m, nn.Conv3d)}
    assert max(depths) == 5


@torch.no_grad()
def test_slices_are_the_2d_network_on_each():
    torch.manual_seed(1)
    volume = torch.randn(2, 1, 4, *SLICE)
    built, network = encoder("test_resnet", mode="slices"), two_d("test_resnet")
    assert built.out_spec.strides[1:] == ((1, 2, 2), (1, 4, 4), (1, 8, 8), (1, 16, 16), (1, 32, 32))
    levels = built(volume)[1:]
    for z in range(4):
        for level, plane in zip(levels, network(volume[:, :, z]), strict=True):
            torch.testing.assert_close(level[:, :, z], plane)


@torch.no_grad()
def test_slabs_are_neighbouring_slices_as_channels():
    volume = torch.randn(1, 2, 4, 32, 32)
    built: Any = encoder("test_resnet", channels=2, mode="slices", slab=3)
    levels = built(volume)
    for z, neighbours in enumerate([(0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 3)]):
        slab = volume[:, :, neighbours].flatten(1, 2)  # all neighbours of a channel, then the next channel
        torch.testing.assert_close(levels[2][:, :, z], built.body.network(slab)[1])


@pytest.mark.parametrize("backbone", ["regnetx_002", "tf_efficientnetv2_b0", "swin_tiny_patch4_window7_224"])
def test_slices_take_networks_that_cannot_be_inflated(backbone):
    torch.set_default_dtype(torch.float32)
    built = encoder(backbone, mode="slices")
    levels = built(torch.randn(1, 1, 2, 64, 64))
    assert [tuple(x.shape[1:]) for x in levels] == list(
        zip(built.out_spec.channels, *zip(*built.out_spec.sizes((2, 64, 64)), strict=True), strict=True)
    )


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_of_a_file(backbone, ending, tmp_path):
    """A classifier's state dict as timm saves it: three input channels, with its last layer."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(3)
    trained: Any = timm.create_model(backbone)
    for p in trained.parameters():
        p.add_(0.02 * torch.randn_like(p))
    path = tmp_path / f"weights.{ending}"
    save_file(trained.state_dict(), path) if ending == "safetensors" else torch.save(trained.state_dict(), path)
    built: Any = encoder(backbone, channels=3, weights=str(path))
    image = torch.randn(1, 3, 64, 64)
    volume = image.unsqueeze(2).expand(-1, -1, 32, -1, -1)
    if backbone in VITS:
        whole: Any = timm.create_model(backbone, num_classes=0, dynamic_img_size=True).eval()
        whole.load_state_dict(trained.state_dict(), strict=False)
        expected = whole.forward_intermediates(image, indices=list(built.body.vit.taps), intermediates_only=True)
        found = built.body.vit(volume)
    else:
        expected = trained.eval().forward_intermediates(image, intermediates_only=True)
        found = built(volume)[1:]
    for level, plane in zip(found, expected, strict=True):
        torch.testing.assert_close(level[:, :, 0], plane, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("mode", ["inflate", "slices"])
def test_weights_are_reported_and_refused_where_they_lack_a_parameter(backbone, mode, tmp_path, caplog):
    """timm leaves such a parameter as it was drawn, without a word."""
    torch.set_default_dtype(torch.float32)
    state, path = timm.create_model(backbone).state_dict(), tmp_path / "weights.pth"
    body = [key for key in state if not key.startswith(("fc.", "head."))]
    torch.save({key: state[key] for key in body}, path)  # without the classifier
    with caplog.at_level("INFO"):
        encoder(backbone, weights=str(path), mode=mode)
    assert f"'{backbone}': {len(body)} loaded, 0 adapted, 0 missing, 0 unexpected" in caplog.text
    torch.save(state | {"other": torch.zeros(1)}, path)
    encoder(backbone, weights=str(path), mode=mode)
    assert "1 unexpected" in caplog.text
    lost = [key for key in body if key.endswith("weight")][-2]
    torch.save({key: value for key, value in state.items() if key != lost}, path)
    assert f"'{lost}' is not in the file" in refusal(CheckpointError, backbone=backbone, weights=str(path), mode=mode)


@pytest.mark.parametrize("mode", ["inflate", "slices"])
def test_a_deeper_backbone_is_another_one(mode, tmp_path):
    """timm drops what has no place: 96 tensors of a resnet34 in a resnet18."""
    torch.set_default_dtype(torch.float32)
    path = tmp_path / "resnet34.pth.tar"
    torch.save({"state_dict": timm.create_model("resnet34").state_dict(), "epoch": 3}, path)
    message = refusal(CheckpointError, backbone="resnet18", weights=str(path), mode=mode)
    assert "'layer1.2.conv1.weight' has no place in it (96 such)" in message


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod.", "module.net."])
def test_wrappers_before_the_names(backbone, prefix, tmp_path, caplog):
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(4)
    trained: Any = timm.create_model(backbone)
    for p in trained.parameters():
        p.normal_()
    path = tmp_path / "weights"
    plain, wrapped = tmp_path / "plain", {prefix + name: value for name, value in trained.state_dict().items()}
    torch.save(trained.state_dict(), plain)
    torch.save(wrapped, path)
    with caplog.at_level("INFO"):
        one, two = (encoder(backbone, channels=3, weights=str(p)).body.state_dict() for p in (plain, path))
    own = [name for name in one if not name.startswith("ups.")]
    assert len(own) > 20
    assert all(torch.equal(one[name], two[name]) for name in own)
    assert caplog.text.count("0 missing, 0 unexpected; 100%") == 2


@torch.no_grad()
def test_weights_for_as_many_channels_are_taken_as_they_are(tmp_path):
    """timm would take them for weights of three, and leave the first layer as it was drawn."""
    torch.set_default_dtype(torch.float32)
    trained: Any = timm.create_model("test_resnet", in_chans=2)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    built: Any = encoder("test_resnet", channels=2, weights=str(tmp_path / "w.pth"), inflation="mean")
    first = next(m for m in built.body.modules() if isinstance(m, torch.nn.Conv3d))
    own = next(m for m in trained.modules() if isinstance(m, torch.nn.Conv2d))
    torch.testing.assert_close(first.weight.sum(2), own.weight)
    message = refusal(CheckpointError, backbone="test_resnet", channels=4, weights=str(tmp_path / "w.pth"))
    assert "is for 2 channels, expected 3 or 4" in message


def refusal(kind: type[Exception], **settings) -> str:
    with pytest.raises(kind) as caught:
        encoder(**settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_done_is_told_in_one_line(tmp_path):
    torch.set_default_dtype(torch.float32)
    assert "did you mean 'resnet18'" in refusal(JointError, backbone="resnet_18")
    assert "is of timm's regnet" in refusal(JointError, backbone="regnetx_002")
    assert "layer 'Conv2dSame' has no 3-D form" in refusal(JointError, backbone="tf_efficientnetv2_b0")
    assert "layer 'BlurPool2d' has no 3-D form" in refusal(JointError, backbone="resnetblur18")
    assert "layer 'LayerNormAct2d' has no 3-D form" in refusal(JointError, backbone="test_efficientnet_ln")
    assert "14 pixels" in refusal(JointError, backbone="vit_small_patch14_dinov2")
    assert "must be 5 numbers" in refusal(JointError, backbone="test_resnet", z_factors=(2, 2))
    assert "a divisor of" in refusal(JointError, backbone="test_resnet", z_factors=(2, 2, 2, 2, 4))
    missing = refusal(CheckpointError, backbone="test_resnet", weights=str(tmp_path / "none.pth"))
    assert "none.pth: no such file" in missing
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "other.pth")
    assert "do not fit 'test_resnet'" in refusal(
        CheckpointError, backbone="test_resnet", weights=str(tmp_path / "other.pth")
    )
    torch.save({"code": print}, tmp_path / "code.pth")
    assert "would run code" in refusal(CheckpointError, backbone="test_resnet", weights=str(tmp_path / "code.pth"))
    with pytest.raises(ValidationError, match="'slab' must be odd"):
        TimmConfig(slab=2)
