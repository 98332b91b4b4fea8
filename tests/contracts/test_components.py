"""One contract for every registered component, found through the registry: nothing here names a component.

Settings are made small by the field names that configs share (`TINY`), and every choice (`Literal`, `bool`) of a config
is a case of its own. A component whose small settings need another field gets it here or keeps its default.
"""

from __future__ import annotations

import importlib
import inspect
import io
import pkgutil
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from monai.networks.blocks.mednext_block import MedNeXtBlock
from pydantic import ValidationError
from torch import Tensor, nn

import maskmed_zoo
from maskmed_zoo import contracts, registry
from maskmed_zoo.contracts import FeatureSpec, HeadOutput, StageOutput
from maskmed_zoo.layers.conv import ConvNormAct
from maskmed_zoo.layers.transformer import MultiHeadAttention

FLOORS = {"encoder": 8, "neck": 2, "decoder": 4, "head": 2, "loss": 2}
STRIDES = ((1, 1, 1), (1, 2, 2), (2, 4, 4))
SPEC = FeatureSpec((4, 6, 8), STRIDES)
PATCHES = [(8, 12, 8), (6, 12, 20)]  # the second has odd levels: 6 x 6 x 10, 3 x 3 x 5
MULTIPLES = dict(zip(PATCHES, [(2, 2, 1), (1, 1, 3)], strict=True))  # of the stride of an encoder they do not fit
IN_CHANNELS, NUM_CLASSES, IGNORE = 2, 3, 3
TINY: dict[str, dict[str, Any]] = {
    "encoder": {
        "channels": SPEC.channels,
        "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 5)),
        "blocks": (1, 2, 1),
        "feature_size": 4,
        "depths": (2, 1, 1, 1),
        "window_size": 3,
        "img_size": (32, 32, 16),
        "width": 12,
        "attention_heads": 2,
        "ffn_ratio": 2,
        "backbone": "test_convnext",
        "stem_channels": 4,
    },
    "neck": {"query_levels": 2, "layers": 2, "width": 12, "attention_heads": 2, "points": 2, "ffn_ratio": 2},
    "decoder": {"kernels": ((1, 3, 3), (3, 3, 5)), "blocks": 2, "channels": 6},
    "head": {"num_queries": 5, "width": 12, "attention_heads": 2, "ffn_ratio": 2, "max_tokens": 40},
    "loss": {},
}
NEEDED: dict[Any, dict[str, Any]] = {("absent", "empty"): {"assigner": "fixed"}}
"""What else a choice needs."""


@dataclass(frozen=True)
class Case:
    """A component with small settings."""

    kind: str
    name: str
    choice: tuple[str, Any] | None

    @property
    def cls(self) -> type[Any]:
        return registry.component(self.name, self.kind)

    def config(self) -> contracts.ComponentConfig:
        fields = self.cls.Config.model_fields
        tiny = {k: v for k, v in TINY[self.kind].items() if k in fields}
        return self.cls.Config(**tiny | dict([self.choice] if self.choice else []) | NEEDED.get(self.choice, {}))

    def build(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        context = {
            "encoder": {"in_channels": IN_CHANNELS},
            "neck": {"in_spec": SPEC, "spacing": (3.0, 1.0, 1.0)},
            "decoder": {"in_spec": SPEC},
            "head": {"in_spec": stage_spec(), "num_classes": NUM_CLASSES, "spacing": (3.0, 1.0, 1.0)},
            "loss": {"num_classes": NUM_CLASSES, "ignore_label": IGNORE},
        }[self.kind]
        return self.cls(config=self.config(), **context)

    @cached_property
    def stride(self) -> contracts.Size3:
        """Of the coarsest map."""
        return self.build().out_spec.total_stride if self.kind == "encoder" else SPEC.total_stride

    def fitting(self, patch: contracts.Size3) -> contracts.Size3:
        """One of `PATCHES`, or a few times the stride if that does not divide them."""
        if all(p % s == 0 for size in PATCHES for p, s in zip(size, self.stride, strict=True)):
            return patch
        d, h, w = (n * s for n, s in zip(MULTIPLES[patch], self.stride, strict=True))
        return d, h, w

    def inputs(self, patch=PATCHES[0], batch: int = 1, seed: int = 1) -> list[Any]:
        """What `forward` takes: float32, on the CPU."""
        patch = self.fitting(patch)
        generator = torch.Generator().manual_seed(seed)

        def maps(spec: FeatureSpec) -> list[Tensor]:
            return [
                torch.randn(batch, c, *s, generator=generator)
                for c, s in zip(spec.channels, spec.sizes(patch), strict=True)
            ]

        if self.kind == "encoder":
            return [torch.randn(batch, IN_CHANNELS, *patch, generator=generator)]
        if self.kind in ("neck", "decoder"):
            return [maps(SPEC)]
        if self.kind == "head":
            return [maps(stage_spec())]
        sizes = stage_spec().sizes(patch)
        labels = torch.randint(0, NUM_CLASSES + 1, (batch, *patch), generator=generator)
        if self.cls.accepts == "logits":
            return [
                HeadOutput(
                    [StageOutput(logits=torch.randn(batch, NUM_CLASSES, *s, generator=generator)) for s in sizes]
                ),
                labels,
            ]
        stages = [
            StageOutput(
                masks=torch.randn(batch, 5, *s, generator=generator),
                class_logits=torch.randn(batch, 5, NUM_CLASSES + 1, generator=generator),
            )
            for s in sizes
        ]
        return [HeadOutput(stages), labels]


def stage_spec() -> FeatureSpec:
    """Stages as a decoder gives them: one less than levels."""
    return FeatureSpec(SPEC.channels[:-1], SPEC.strides[:-1])


def choices(config: type[contracts.ComponentConfig]) -> list[tuple[str, Any]]:
    """Every value of every field that is a choice, but for the defaults."""
    found: list[tuple[str, Any]] = []
    for name, field in config.model_fields.items():
        options = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        options = (True, False) if field.annotation is bool else options
        found += [(name, option) for option in options if name != "kind" and option != field.default]
    return found


def cases(*kinds: str) -> list[Any]:
    found = []
    for kind in kinds:
        for name in registry.names(kind):
            for choice in [None, *choices(registry.component(name, kind).Config)]:
                label = name if choice is None else f"{name}-{choice[0]}={choice[1]}"
                found.append(pytest.param(Case(kind, name, choice), id=label))
    assert len(found) >= sum(FLOORS[kind] for kind in kinds)
    return found


NETWORKS = ("encoder", "neck", "decoder", "head")
every_component = pytest.mark.parametrize("case", cases(*registry.COMPONENT_KINDS))
every_network = pytest.mark.parametrize("case", cases(*NETWORKS))


def tensors(output: Any) -> list[Tensor]:
    """All tensors in what a `forward` returned."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, HeadOutput):
        return [t for s in output.stages for t in (s.logits, s.masks, s.class_logits, s.queries) if t is not None]
    if isinstance(output, dict):
        return [t for _, t in sorted(output.items())]
    return [t for part in output for t in tensors(part)]


def perturb(module: nn.Module) -> nn.Module:
    """Small noise on every parameter: some layers start at zero."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1)
    return module


def as_dtype(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return [as_dtype(v, dtype) for v in value]


def close(actual: Any, expected: Any, **bounds: Any) -> None:
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, **bounds)


# --- cards and code


@pytest.mark.parametrize(("kind", "floor"), FLOORS.items())
def test_the_registry_has_at_least_so_many(kind, floor):
    assert len(registry.names(kind)) >= floor
    assert FLOORS.keys() == set(registry.COMPONENT_KINDS)


@pytest.mark.parametrize("kind", registry.COMPONENT_KINDS)
def test_every_card_has_code_and_every_component_a_card(kind):
    """Cards in `registry/` against concrete subclasses defined in the modules of the kind's package."""
    package = importlib.import_module(f"maskmed_zoo.{registry.FOLDERS[kind]}")
    base = getattr(contracts, kind.capitalize())
    defined = set()
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        for _, cls in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            if issubclass(cls, base) and not inspect.isabstract(cls) and cls.__module__ == info.name:
                defined.add(cls)
    shipped = [
        card for card in registry.find(kind=kind) if str(card.facts["target"]).startswith(package.__name__ + ".")
    ]
    assert len(shipped) >= FLOORS[kind]
    assert {registry.component(card.name, kind) for card in shipped} == defined
    assert len(defined) == len(shipped)
    for card in shipped:
        assert card.facts["target"].partition(":")[0] == f"{package.__name__}.{card.name}"  # one file per component
        assert card.source.parent.name == registry.FOLDERS[kind]


@pytest.mark.parametrize("kind", registry.COMPONENT_KINDS)
def test_cards_hold_the_facts(kind):
    for card in registry.find(kind=kind):
        assert 0 < len(card.summary) <= 100
        assert card.facts.keys() >= {"paper", "license"}


def test_names_are_unique_across_kinds():
    names = [name for kind in registry.KINDS for name in registry.names(kind)]
    assert len(set(names)) == len(names) == len(maskmed_zoo.list())


# --- settings


@every_component
def test_config_is_typed_frozen_and_refuses_unknown_keys(case):
    config = case.config()
    assert config.kind == case.name == case.cls.Config.model_fields["kind"].default
    assert case.cls.Config.__module__ == case.cls.__module__
    with pytest.raises(ValidationError):
        config.kind = "other"
    with pytest.raises(ValidationError, match="extra_forbidden"):
        case.cls.Config(no_such_setting=1)
    with pytest.raises(ValidationError):
        case.cls.Config(kind="other")
    assert case.cls.Config.model_validate_json(config.model_dump_json()) == config


@every_component
def test_every_setting_has_a_default_and_construction_is_by_keyword(case):
    case.cls.Config()
    parameters = list(inspect.signature(case.cls.__init__).parameters.values())[1:]
    assert {p.name for p in parameters} >= {"config"}
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
    assert case.cls.parameter_group in get_args(contracts.ParameterGroup)


@every_component
def test_docstrings_state_shapes(case):
    assert case.cls.__doc__
    assert case.cls.Config.__doc__
    assert "(b " in (inspect.getdoc(case.cls.forward) or "")
    module = inspect.getmodule(case.cls)
    assert module is not None
    assert len((module.__doc__ or "").strip()) > 60


# --- shapes


@pytest.mark.parametrize("patch", PATCHES, ids=str)
@pytest.mark.parametrize("batch", [1, 2])
@every_network
def test_out_spec_states_the_shapes_really_produced(case, batch, patch):
    component, inputs, patch = case.build(), case.inputs(patch, batch), case.fitting(patch)
    output = component(*inputs)
    if case.kind == "head":
        check_head_output(component, output, batch, patch)
        return
    spec = component.out_spec
    assert all(len(pair) == len(spec) for pair in (output, spec.channels, spec.strides))
    for x, channels, size in zip(output, spec.channels, spec.sizes(patch), strict=True):
        assert x.shape == (batch, channels, *size)
        assert x.dtype == torch.float32
    for fine, coarse in pairwise(spec.strides):
        assert all(b % a == 0 for a, b in zip(fine, coarse, strict=True))
    if case.kind == "encoder":
        assert spec == SPEC or "strides" not in case.cls.Config.model_fields
        assert spec.strides[0] == (1, 1, 1)
        assert not any(p % s for p, s in zip(patch, spec.total_stride, strict=True))
    elif case.kind == "neck":
        assert spec == SPEC
    else:
        assert spec.strides[0] == (1, 1, 1)


def check_head_output(head: contracts.Head, output: HeadOutput, batch: int, patch) -> None:
    sizes = [tuple(p // s for p, s in zip(patch, stride, strict=True)) for stride in head.out_strides]
    assert len(output.stages) == len(sizes)
    for stage, size in zip(output.stages, sizes, strict=True):
        if head.gives == "logits":
            assert stage.logits.shape == (batch, NUM_CLASSES, *size)
            if head.num_queries is None:
                assert stage.masks is stage.class_logits is stage.queries is None
            else:
                assert stage.masks.shape == (batch, head.num_queries, *size)
                assert stage.class_logits.shape == (batch, head.num_queries, NUM_CLASSES)
        else:
            assert stage.logits is None
            assert stage.masks.shape == (batch, head.num_queries, *size)
            assert stage.class_logits.shape == (batch, head.num_queries, NUM_CLASSES + 1)
            assert stage.queries.shape[:2] == (batch, head.num_queries)
    assert output.log_probabilities().shape == (batch, NUM_CLASSES, *patch)


@every_network
def test_samples_of_a_batch_do_not_influence_each_other(case):
    component = perturb(case.build()).eval()
    one, other = case.inputs(seed=1), case.inputs(seed=2)
    if case.kind == "encoder":
        both = [torch.cat([one[0], other[0]])]
    else:
        both = [[torch.cat(pair) for pair in zip(one[0], other[0], strict=True)]]
    together = tensors(component(*both))
    close([x[:1] for x in together], component(*one), rtol=1e-4, atol=1e-4)
    close([x[1:] for x in together], component(*other), rtol=1e-4, atol=1e-4)


# --- gradients


def without_effect(component: nn.Module) -> set[str]:
    """Parameters that add a constant which the next step removes: their exact gradient is zero.

    The bias of a convolution before a norm per channel (kept for nnU-Net's checkpoints, and MONAI's), and the bias of
    attention keys.
    """
    names = {f"{name}.conv.bias" for name, m in component.named_modules() if isinstance(m, ConvNormAct)}
    names |= {f"{name}.conv1.bias" for name, m in component.named_modules() if isinstance(m, MedNeXtBlock)}
    names |= {f"{name}.key.bias" for name, m in component.named_modules() if isinstance(m, MultiHeadAttention)}
    known = dict(component.named_parameters())
    return {name for name in names if name in known}


@every_network
def test_backward_reaches_every_parameter(case):
    component = perturb(case.build()).double()
    inputs = as_dtype(case.inputs(batch=2), torch.float64)
    generator = torch.Generator().manual_seed(3)
    output = tensors(component(*inputs))
    loss: Any = sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in output)
    parameters = dict(component.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True) if parameters else ()
    largest = {name: 0.0 if g is None else float(g.abs().max()) for name, g in zip(parameters, found, strict=True)}
    assert not [name for name, g in zip(parameters, found, strict=True) if g is None]
    expected = without_effect(component)
    assert {name for name, value in largest.items() if value < 1e-9} == expected


@every_network
def test_backward_reaches_the_input(case):
    component, inputs = perturb(case.build()), case.inputs()
    leaves = [x.requires_grad_() for x in tensors(inputs)]
    sum((x.float() ** 2).sum() for x in tensors(component(*inputs))).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() and (x.grad != 0).any() for x in leaves)


@pytest.mark.parametrize("case", cases("loss"))
def test_a_loss_is_a_finite_scalar_whose_gradient_reaches_every_weighted_stage(case):
    loss, (output, labels) = case.build(), case.inputs(batch=2)
    for x in tensors(output):
        x.requires_grad_()
    value, parts = loss(output, labels)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert value > 0
    assert parts
    assert all(part.shape == () and not part.requires_grad for part in parts.values())
    value.backward()
    weights = loss.stage_weights(len(output.stages))
    assert sum(weights) == pytest.approx(1)
    assert weights == sorted(weights, reverse=True)
    for stage, weight in zip(output.stages, weights, strict=True):
        for x in tensors(HeadOutput([stage])):
            assert (x.grad is not None and bool((x.grad != 0).any())) == (weight > 0)


@pytest.mark.parametrize("case", cases("loss"))
def test_a_loss_falls_when_it_is_followed(case):
    loss, (output, labels) = case.build(), case.inputs(batch=2)
    leaves = [x.requires_grad_() for x in tensors(output)]
    optimizer = torch.optim.Adam(leaves, lr=0.2)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        value, _ = loss(output, labels)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


# --- numbers


@every_component
def test_same_seed_same_output(case):
    first, second = (case.build(seed=4)(*case.inputs()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))


@every_component
def test_state_dict_round_trip(case):
    first, second = perturb(case.build(seed=1)), case.build(seed=2)
    inputs = case.inputs()
    second.load_state_dict(first.state_dict())
    close(second(*inputs), first(*inputs), rtol=0, atol=0)


@every_network
def test_double_precision(case):
    single, double = perturb(case.build()), perturb(case.build()).double()
    output = double(*as_dtype(case.inputs(), torch.float64))
    assert all(x.dtype == torch.float64 for x in tensors(output))
    close(as_dtype(tensors(single(*case.inputs())), torch.float64), tensors(output), rtol=1e-3, atol=1e-3)


@every_component
def test_bfloat16_autocast_is_finite_and_near(case):
    component, inputs = perturb(case.build()), case.inputs()
    with torch.autocast("cpu", torch.bfloat16):
        output = tensors(component(*inputs))
    assert all(x.isfinite().all() for x in output)
    for x, reference in zip(output, tensors(component(*inputs)), strict=True):
        assert (x.float() - reference).norm() <= 0.1 * reference.norm()


# --- without data, and exported


@every_component
def test_construction_on_meta(case):
    with torch.device("meta"):
        component = case.build()
    real = case.build().state_dict()
    assert {k: v.shape for k, v in component.state_dict().items()} == {k: v.shape for k, v in real.items()}
    assert all(p.is_meta for p in component.parameters())


@every_network
def test_forward_on_meta_gives_the_same_shapes(case):
    with torch.device("meta"):
        component = case.build()
    inputs = case.inputs()
    on_meta = inputs[0].to("meta") if isinstance(inputs[0], Tensor) else [x.to("meta") for x in inputs[0]]
    found, expected = tensors(component(on_meta)), tensors(case.build()(*inputs))
    assert all(x.is_meta for x in found)
    assert [x.shape for x in found] == [x.shape for x in expected]


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("pointwise_hippocampus_cpu", {"model__encoder__kind": "residual", "model__encoder__blocks": [1, 1, 2]}),
        (
            "maskmed_hippocampus_cpu",
            {
                "model__neck__width": 12,
                "model__neck__attention_heads": 2,
                "model__head__width": 12,
                "model__head__attention_heads": 2,
                "model__head__max_tokens": 100,
            },
        ),
    ],
)
def test_whole_models_are_exported_saved_loaded_and_keep_their_output(recipe, settings):
    torch.manual_seed(0)
    model = maskmed_zoo.create(recipe, **settings, model__encoder__channels=[4, 6, 8]).eval()
    perturb(model)
    image = torch.randn(1, model.in_channels, 8, 12, 8)
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (image,)), file)
    file.seek(0)
    program = torch.export.load(file)
    output = program.module()(image)
    assert isinstance(output, HeadOutput)
    close(output, model(image), rtol=1e-5, atol=1e-5)
    assert NoneType not in {type(stage.spatial) for stage in output.stages}
