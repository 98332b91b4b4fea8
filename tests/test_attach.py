"""A head of ours in finished networks of MONAI: what is found, what stays, what it gives, and that it learns."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.mednext import MedNeXt
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.segresnet_ds import SegResNetDS
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unet import UNet
from monai.networks.nets.unetr import UNETR
from monai.networks.nets.vnet import VNet
from torch import Tensor, nn

import maskmed_zoo as zoo
from maskmed_zoo.adapters.probe import trace
from maskmed_zoo.contracts import HeadOutput
from maskmed_zoo.errors import ArgumentError, JointError, RegistryError
from maskmed_zoo.losses.set_criterion import SetCriterion

CLASSES = 3
SMALL = {"kind": "masked_query", "width": 24, "attention_heads": 2}
FULL, HALF = (1, 1, 1), (2, 2, 2)
UNETR_PATCH = (32, 32, 32)


def dyn_unet(deep: bool = True) -> DynUNet:
    kernels, strides = [3] * 4, [1, 2, 2, (1, 2, 2)]
    return DynUNet(
        3, 1, CLASSES, kernels, strides, strides[1:], filters=[4, 8, 16, 24], deep_supervision=deep, deep_supr_num=2
    )


def swin_unetr() -> SwinUNETR:
    return SwinUNETR(in_channels=1, out_channels=CLASSES, feature_size=12, depths=(1, 1, 1, 1), window_size=3)


# A network, the channels and strides along x of the stages that the head is to read, and a patch for it.
NETWORKS = {
    "swin_unetr": (swin_unetr, (12, 12, 24, 48, 96), (1, 2, 4, 8, 16), (64, 32, 32)),
    "dyn_unet": (dyn_unet, (4, 8, 16), (1, 2, 4), (16, 16, 16)),
    "dyn_unet, no deep supervision": (lambda: dyn_unet(False), (4, 8, 16), (1, 2, 4), (16, 16, 16)),
    "unet": (lambda: UNet(3, 1, CLASSES, (4, 8, 16, 24), (2, 2, 2), num_res_units=1), (8, 16), (2, 4), (16, 16, 16)),
    "seg_res_net": (lambda: SegResNet(out_channels=CLASSES), (8, 16, 32), (1, 2, 4), (16, 16, 16)),
    "seg_res_net_ds": (
        lambda: SegResNetDS(out_channels=CLASSES, init_filters=8, dsdepth=3), (8, 16, 32), (1, 2, 4), (16, 16, 16),
    ),
    "unetr": (
        lambda: UNETR(1, CLASSES, UNETR_PATCH, feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2),
        (4, 8, 16, 32), (1, 2, 4, 8), UNETR_PATCH,
    ),
    "basic_unet": (
        lambda: BasicUNet(3, 1, CLASSES, features=(4, 4, 8, 16, 24, 4)), (4, 4, 8, 16), (1, 2, 4, 8), (32, 32, 32),
    ),
    "med_next": (
        lambda: MedNeXt(in_channels=1, out_channels=CLASSES, init_filters=4, deep_supervision=True),
        (4, 8, 16, 32), (1, 2, 4, 8), (32, 32, 32),
    ),
    "attention_unet": (lambda: AttentionUnet(3, 1, CLASSES, (4, 8, 16), (2, 2)), (4, 8), (1, 2), (16, 16, 16)),
    "v_net": (lambda: VNet(3, 1, CLASSES), (32, 64, 128, 256), (1, 2, 4, 8), (32, 16, 16)),
}  # fmt: skip
every_network = pytest.mark.parametrize("name", NETWORKS)


def attach(network: nn.Module, patch=(64, 64, 64), **settings):
    return zoo.attach_head(network, SMALL, num_classes=CLASSES, patch_size=patch, **settings)


def image_and_labels(patch: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    d, h, w = patch
    labels = torch.zeros(1, *patch, dtype=torch.long)
    labels[:, : d // 2, h // 4 :, : w // 2] = 1
    labels[:, : d // 2, h // 4 :, w // 2 :] = 2
    return torch.randn(1, 1, *patch) + 2 * labels.unsqueeze(1), labels


@every_network
def test_any_network(name):
    """Stages, kept weights, gradients for all that is left, and probabilities at the image's size."""
    make, channels, strides, patch = NETWORKS[name]
    torch.manual_seed(0)
    network = make().train()
    old, modes = dict(network.state_dict()), [m.training for m in network.modules()]
    random = torch.get_rng_state()
    trace(network, 1, UNETR_PATCH if name == "unetr" else (64, 64, 64))
    assert torch.equal(random, torch.get_rng_state())
    model = attach(network, UNETR_PATCH if name == "unetr" else (64, 64, 64))
    assert all(modes)
    assert all(m.training for m in model.modules())
    spec: Any = model.head.decoder.in_spec
    assert spec.channels == channels
    assert tuple(stride[2] for stride in spec.strides) == strides

    kept = {k.removeprefix("network."): v for k, v in model.state_dict().items() if k.startswith("network.")}
    assert kept.keys() <= old.keys()
    assert all(v is old[k] or v.data_ptr() == old[k].data_ptr() for k, v in kept.items())
    assert sum(v.numel() for v in kept.values()) > 0.9 * sum(v.numel() for v in old.values())
    assert not [k for k in kept if k.startswith(("out.", "output_block", "final_conv", "out_0", "deep_supervision"))]

    image, labels = image_and_labels(patch)
    output = model(image)
    assert isinstance(output, HeadOutput)
    assert len(output.stages) == len(channels)
    assert output.stages[0].masks.shape == (1, CLASSES, *patch)
    SetCriterion(num_classes=CLASSES)(output, labels)[0].backward()
    assert not [k for k, p in model.named_parameters() if p.grad is None]
    with torch.no_grad():
        found = model.eval().predict(image)
    assert found.shape == (1, CLASSES, *patch)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(1, *patch))


def test_at_least_six_networks():
    assert len(NETWORKS) >= 6


@pytest.mark.parametrize("name", ["swin_unetr", "dyn_unet", "unet", "seg_res_net"])
def test_the_stages_are_what_went_into_the_output(name):
    """With the network's own output convolution on the finest stage, the network's own output comes back."""
    make, _, _, patch = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    image = torch.randn(1, 1, *patch)
    last = {"swin_unetr": "out.conv.conv", "dyn_unet": "output_block.conv.conv", "unet": "model.2",
            "seg_res_net": "conv_final.2.conv"}[name]  # fmt: skip
    with torch.no_grad():
        expected = network(image)
        output_layer = copy.deepcopy(network.get_submodule(last))
        model = attach(network).eval()
        finest = model.taps.run(model.network, image)[0]
        torch.testing.assert_close(output_layer(finest), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["swin_unetr", "dyn_unet"])
def test_learns(name):
    make, _, _, patch = NETWORKS[name]
    torch.manual_seed(0)
    model, criterion = attach(make()), SetCriterion(num_classes=CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    image, labels = image_and_labels(patch)
    values = []
    for _ in range(16):
        optimizer.zero_grad()
        value, _ = criterion(model(image), labels)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]


def test_a_frozen_body_stays_as_it_is():
    torch.manual_seed(0)
    network = VNet(3, 1, CLASSES)  # batch norm and dropout
    model = attach(network, freeze="body").train()
    assert not any(m.training for m in model.network.modules())
    assert model.head.training
    assert not model.parameter_groups()["cnn"]
    old = copy.deepcopy(model.network.state_dict())
    image, labels = image_and_labels((32, 16, 16))
    SetCriterion(num_classes=CLASSES)(model(image), labels)[0].backward()
    torch.optim.SGD(model.parameter_groups()["transformer"], lr=0.1).step()
    assert all(torch.equal(v, old[k]) for k, v in model.network.state_dict().items())
    assert all(p.grad is not None for p in model.head.parameters())


def test_groups_hold_every_parameter_once():
    model = attach(dyn_unet())
    grouped = [id(p) for group in model.parameter_groups().values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("head", ["pointwise", "learned_class", "attention_mask_class"])
def test_other_heads(head):
    model = zoo.attach_head(dyn_unet(), head, num_classes=5, spacing=(3.0, 1.0, 1.0))
    assert model(torch.randn(2, 1, 16, 16, 16)).stages[0].logits.shape == (2, 5, 16, 16, 16)


def test_named_stages():
    model = attach(dyn_unet(), stages=["upsamples.1", "upsamples.2"])
    assert model.head.decoder.in_spec.strides == (FULL, HALF)
    assert len(model(torch.randn(1, 1, 16, 16, 16)).stages) == 2
    assert not [k for k in model.state_dict() if "output_block" in k]


def test_copies_are_independent():
    model = attach(dyn_unet())
    image = torch.randn(1, 1, 16, 16, 16)
    model(image)
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        before = model.eval().predict(image)
        for p in twin.parameters():
            p.zero_()
        assert torch.equal(model.predict(image), before)
        assert not torch.allclose(twin.predict(image), before)


@pytest.mark.parametrize("name", ["dyn_unet", "unet"])
def test_nothing_is_kept_between_calls(name):
    model = attach(NETWORKS[name][0]())
    seen = []

    def note(_module, args):
        seen.extend(weakref.ref(x) for x in args[0])

    model.head.register_forward_pre_hook(note)
    model(torch.randn(1, 1, 16, 16, 16, requires_grad=True))
    gc.collect()
    assert len(seen) >= 2
    assert not [x for ref in seen if (x := ref()) is not None]


@pytest.mark.parametrize("name", ["dyn_unet", "seg_res_net"])
def test_compiles_without_a_break(name):
    make, _, _, patch = NETWORKS[name]
    model = attach(make()).eval()
    image = torch.randn(1, 1, *patch)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(image).log_probabilities(), model.predict(image))


def test_data_parallel_training_finds_no_idle_parameter(tmp_path):
    """With one process; a parameter without a gradient makes the second forward pass fail."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(attach(dyn_unet()))
        image, labels = image_and_labels((16, 16, 16))
        for _ in range(2):
            SetCriterion(num_classes=CLASSES)(parallel(image), labels)[0].backward()
        assert not [k for k, p in parallel.named_parameters() if p.grad is None]
    finally:
        torch.distributed.destroy_process_group()


def test_bfloat16_autocast():
    model = attach(dyn_unet()).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model.predict(image)
    assert found.dtype == torch.float32
    assert (found.exp() - model.predict(image).exp()).abs().max() < 0.1


def test_the_head_has_the_type_of_the_network():
    model = attach(dyn_unet().double())
    assert model(torch.randn(1, 1, 16, 16, 16, dtype=torch.float64)).stages[0].masks.dtype == torch.float64


def test_is_exported_and_stored_whole(tmp_path):
    model, image = attach(dyn_unet()).eval(), torch.randn(1, 1, 16, 16, 16)
    expected = model.predict(image)
    program = torch.export.export(model, (image,), strict=True).module()
    torch.testing.assert_close(program(image).log_probabilities(), expected)
    torch.save(model, tmp_path / "model.pth")
    stored = torch.load(tmp_path / "model.pth", weights_only=False)
    torch.testing.assert_close(stored.predict(image), expected)


def test_shared_weights_and_batch_norm_survive_the_probe():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.first, self.second = nn.BatchNorm3d(4), nn.Conv3d(4, 4, 1), nn.Conv3d(4, 4, 1)
            self.second.weight = self.first.weight
            self.enter, self.out = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, CLASSES, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.second(self.first(self.norm(self.enter(x)).relu())))

    network = Tied()
    old = copy.deepcopy(network.state_dict())
    model = attach(network, (8, 8, 8), in_channels=1)
    assert all(torch.equal(v, old[k]) for k, v in network.state_dict().items())
    assert network.second.weight is network.first.weight
    assert model(torch.randn(1, 1, 8, 8, 8)).stages[0].masks.shape == (1, CLASSES, 8, 8, 8)


def test_a_network_that_reads_numbers_back():
    """It cannot run without data, and is run with."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.out = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, CLASSES, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.enter(x) * (1 if x.sum().item() < 1e9 else 2))

    assert attach(Reads(), (8, 8, 8)).head.decoder.in_spec.channels == (4,)


def refusal(network: nn.Module, **settings) -> str:
    with pytest.raises((JointError, ArgumentError)) as caught:
        zoo.attach_head(network, **dict[str, Any]({"num_classes": CLASSES} | settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [{"head": "unet"}, {"head": "masked_qery"}, {"head": {"kind": "masked_query", "widht": 3}}, {"num_classes": 0}],
)
def test_a_refused_head_leaves_the_network_whole(settings):
    network, image = dyn_unet().eval(), torch.randn(1, 1, 16, 16, 16)
    expected = network(image)
    with pytest.raises((ArgumentError, JointError, RegistryError)):
        zoo.attach_head(network, **dict[str, Any]({"num_classes": CLASSES} | settings))
    assert torch.equal(network(image), expected)


def test_what_does_not_fit_is_told_in_one_line():
    assert "is a 2-D network" in refusal(UNet(2, 1, CLASSES, (4, 8), (2,)))
    assert "has no 3-D convolution" in refusal(nn.Sequential(nn.Linear(3, 3)))
    told = refusal(swin_unetr(), patch_size=(20, 20, 20))
    assert "SwinUNETR does not take an image (1, 1, 20, 20, 20)" in told
    assert "number of channels" in refusal(dyn_unet(), in_channels=2)
    assert "'upsample.2'" in refusal(dyn_unet(), stages=["upsample.2"])
    assert "names no module" not in refusal(dyn_unet(), stages=["upsamples"])
    assert "no module of DynUNet is named" in refusal(dyn_unet(), stages=[])
    assert "freeze is 'body' or None" in refusal(dyn_unet(), freeze="head")
    assert "head 'masked_query': widht" in refusal(dyn_unet(), head={"kind": "masked_query", "widht": 3})
    assert "no output convolution" in refusal(nn.Sequential(nn.Conv3d(1, 2, 1), Detached()))


class Detached(nn.Module):
    """Its output depends on nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def test_a_misspelt_setting_of_the_head_is_told_as_in_a_recipe():
    said = refusal(dyn_unet(), head={"kind": "masked_query", "widht": 96})
    assert said == "head 'masked_query': widht: unknown key; did you mean 'width'?"
