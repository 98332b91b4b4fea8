"""No recipe decides how much memory or time it costs: text, numbers and networks beyond the limits are one line."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

import maskmed_zoo as zoo
from maskmed_zoo import network_size
from maskmed_zoo.ablation.grid import load_grid
from maskmed_zoo.build import network_facts
from maskmed_zoo.errors import JointError, MemoryShortageError, RecipeError, UserError
from maskmed_zoo.recipe import dump_recipe, load_recipe, recipe_type
from maskmed_zoo.recipe.strict_yaml import Document, dump
from tests.conftest import TINY

NINE = "[x, x, x, x, x, x, x, x, x]"
BOMB = f"a0: &a0 {NINE}\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGED = "a0: &a0 {x: 1, y: 2}\n" + "".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}\n" for i in range(1, 60))
TEXTS = {
    "aliases of aliases": (BOMB, r":\d+:\d+: more than 50000 values up to here, aliases written out; refused"),
    "mappings of aliases": (MERGED, r"more than 50000 values"),
    "a chain of aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 5000)),
        r"nested more than 64 levels deep; refused",
    ),
    "lists in lists": ("a: " + "- " * 30_000, r"."),
    "mappings in mappings": ("{a: " * 30_000, r":1:\d+: nested more than 64 levels deep; refused"),
    "brackets": ("[" * 200_000, r"not valid YAML|nested"),
    "many values": ("- 1\n" * 60_000, r"more than 50000 values"),
    "a large file": ("# " + "x" * 300_000, r"more than 262144 bytes"),
    "a tag on a list": ("a: !!seq [1]", r":1:4: tag 'tag:yaml\.org,2002:seq' is not allowed here"),
    "a tag on a mapping": ("!!omap {a: 1}", r":1:1: tag 'tag:yaml\.org,2002:omap' is not allowed here"),
    "a tag on a set": ("a: !!set {b, c}", r":1:4: tag 'tag:yaml\.org,2002:set'"),
    "a tag on a value": ("a: !!str 3", r":1:4: tag 'tag:yaml\.org,2002:str'"),
    "binary": ("a: !!binary aGVsbG8=", r":1:4: tag 'tag:yaml\.org,2002:binary'"),
    "a tag of one's own": ("%TAG ! tag:x.org,2000:\n---\na: !b 1", r":1:1: a directive \(%\) is not allowed here"),
    "a version": ("%YAML 1.1\n---\na: 1", r":1:1: a directive"),
    "two documents": ("a: 1\n---\nb: 2", r"not valid YAML"),
    "a key that is a list": ("? [1, 2]\n: 3", r":1:3: key '\?' must be text"),
    "a merge key": ("a: &a {b: 1}\nc: {<<: *a}", r":2:5: a merge key \(<<\) is not allowed here"),
    "NUL": ("a: \0", r"not valid YAML"),
    "an escape": ("a: \x1b[31m", r"not valid YAML"),
    "a number beyond all": ("a: " + "9" * 5000, r":1:4: '9.* is no finite number"),
    "an exponent beyond all": ("a: 1e999", r":1:4: '1e999' is no finite number"),
    "an unknown alias": ("a: *b", r"not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_text(name: str, tmp_path: Path) -> None:
    """In a recipe, in a grid and after `--set`; within a second and without memory for what it stands for."""
    text, message = TEXTS[name]
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    readers: tuple[Callable[[], object], ...] = (
        lambda: load_recipe(tmp_path / "r.yaml"),
        lambda: load_grid(tmp_path / "r.yaml"),
        lambda: load_recipe("maskmed_phantom", [f"data.labels={text}"]),
    )
    for read in readers:
        with pytest.raises(RecipeError, match=message) as caught:
            read()
        assert all(line.isprintable() for line in str(caught.value).split("\n"))
    assert time.process_time() - start < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "KiB"


@pytest.mark.parametrize("content", [TINY.encode("utf-16"), TINY.encode() + b"\xff\xfe", b"\x1f\x8b\x08"])
def test_other_encodings_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=r"r\.yaml: is no UTF-8 text \(byte \d+\)"):
        load_recipe(tmp_path / "r.yaml")


def test_a_byte_order_mark_and_aliases_within_the_limits_are_read(tmp_path: Path) -> None:
    text = TINY.replace("[8, 16, 16]", "&patch [8, 16, 16]").replace("spacing: [2, 1, 1]", "spacing: [2, 1, 1]")
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_recipe(tmp_path / "r.yaml").data.patch_size == (8, 16, 16)
    assert Document("a: &a [1, 2]\nb: [*a, *a]", "t").data == {"a": [1, 2], "b": [[1, 2], [1, 2]]}


@pytest.mark.parametrize("path", ["a." * 10_000 + "a", "", ".", "a..b", ".a"])
def test_paths_of_overrides(path: str, tiny_recipe: Path) -> None:
    for overrides in ([f"{path}=1"], {path: 1}):
        with pytest.raises(RecipeError, match=r"expected the path of a setting, as .* of at most 64 keys"):
            load_recipe(tiny_recipe, overrides)


def test_values_of_overrides_are_the_callers_and_no_deeper(tiny_recipe: Path) -> None:
    deep: list[object] = []
    for _ in range(100):
        deep = [deep]
    endless: list[object] = []
    endless.append(endless)
    for value in (deep, endless):
        with pytest.raises(RecipeError, match="nested more than 64"):
            load_recipe(tiny_recipe, {"data.labels": value})
    optimizer = {"kind": "adamw"}
    load_recipe(tiny_recipe, {"train.optimizer": optimizer, "train.optimizer.lr": 1e-4})
    assert optimizer == {"kind": "adamw"}


NUMBERS = {
    "model.encoder.channels": [10**9, 8, 8],
    "model.encoder.blocks": 10**9,
    "model.encoder.kernels": [[10**7] * 3] * 3,
    "model.neck.points": 10**9,
    "model.neck.attention_heads": 10**9,
    "model.neck.layers": 10**9,
    "model.neck.query_levels": 10**9,
    "model.decoder.blocks": 10**9,
    "model.decoder.width": 1e300,
    "model.decoder.parameters": 10**12,
    "model.head.num_queries": 10**9,
    "model.head.queries_per_class": 10**9,
    "model.head.width": 10**9,
    "model.head.layers": 10**9,
    "model.loss.points": 10**9,
    "data.patch_size": [10**6] * 3,
    "train.batch_size": 10**10,
    "train.epochs": 10**18,
    "train.iterations_per_epoch": 10**18,
    "train.optimizer.warmup_iterations": 10**18,
    "inference.batch_size": 10**10,
    "name": "x" * 10**6,
}


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_have_bounds_which_the_schema_states(key: str, tiny_recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"less than or equal to|at most") as caught:
        load_recipe(tiny_recipe, {key: NUMBERS[key]})
    assert all(len(line) < 600 for line in caught.value.problems)
    content = load_recipe(tiny_recipe).model_dump(mode="json")
    jsonschema.validate(content, SCHEMA)
    *sections, last = key.split(".")
    inside = content
    for section in sections:
        inside = inside[section]
    inside[last] = NUMBERS[key]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)


SCHEMA = recipe_type().model_json_schema()
LARGE = {
    "width": ({"model.head.width": 65536}, r"weights take [\d,.]+ GiB, cpu has [\d,.]+ GiB left; give fewer channels"),
    "channels": ({"model.encoder.channels": [65536] * 3}, r"weights take [\d,.]+ GiB, cpu has"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_network_that_does_not_fit_is_counted_and_not_made(name: str, tiny_recipe: Path) -> None:
    overrides, message = LARGE[name]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    recipe = load_recipe(tiny_recipe, overrides)
    assert network_facts(recipe)["total_parameters"] > 2**34
    with pytest.raises(MemoryShortageError, match=message) as caught:
        zoo.create(recipe)
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000, "KiB"


def test_numbers_of_labels_and_channels_too(tiny_recipe: Path) -> None:
    with pytest.raises(RecipeError, match="2 … 65536 classes, background counted, got 1 and 1000000000"):
        zoo.create(tiny_recipe, num_classes=10**9)
    with pytest.raises(RecipeError, match="1 … 65536 channels"):
        zoo.create(tiny_recipe, in_channels=0)


def test_many_layers_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_size, "MOST_PARTS", 100)

    with pytest.raises(JointError, match="more than 100 layers and tensors"):
        network_size.made(_deep)
    assert isinstance(network_size.made(lambda: nn.Conv3d(1, 2, 3)), nn.Conv3d), "counted anew for each network"


def _deep() -> nn.Module:
    module: nn.Module = nn.Identity()
    while True:
        module = nn.Sequential(module)


def test_counting_changes_no_random_number(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    expected = nn.Conv3d(1, 2, 3).weight
    monkeypatch.setattr(network_size, "LARGE", 10)
    torch.manual_seed(3)
    assert torch.equal(network_size.made(lambda: nn.Conv3d(1, 2, 3)).weight, expected)


def test_failures_to_allocate_are_one_line() -> None:
    def fails(error: BaseException) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            if torch.get_default_device().type == "meta":
                return nn.Identity()
            raise error

        return make

    said = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    for error in (MemoryError(), RuntimeError(said), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")):
        with pytest.raises(MemoryShortageError, match="there is no memory left for the network; give fewer"):
            network_size.made(fails(error))
    with pytest.raises(JointError, match="cannot be made"):
        network_size.made(lambda: nn.Linear(2**40, 2**40))


def test_what_dump_writes_is_read_back() -> None:
    random.seed(0)
    alphabet = [*"a1.e- \n\t'\"#:~é😀\x85\u2028", "no", "null"]
    for _ in range(300):
        text = "".join(random.choices(alphabet, k=random.randint(0, 6)))
        data = {"x": text, "y": [text, {"k": text, "n": [1, -2.5e-7, None, True]}], "z" + text.strip() + "z": 10**25}
        assert Document(dump(data), "t").data == data
    shared = [1, 2]
    assert "&" not in dump({"a": shared, "b": shared})


def test_mutated_recipes_are_read_or_refused(tmp_path: Path) -> None:
    """Each of 300 damaged texts is a recipe that is written as it is read, or a user's error in lines."""
    rng, path, read, refused = random.Random(1), tmp_path / "r.yaml", 0, list[str]()
    pieces = [
        "9" * 400,
        "1e999",
        "!!map",
        "*a",
        "&a",
        "[" * 70,
        "{",
        "}",
        "\0",
        "\x1b[0m",
        "---",
        "kind: x",
        "\u2028",
        "<<",
    ]
    for _ in range(300):
        text = TINY
        for _ in range(rng.randint(1, 3)):
            at, length = rng.randrange(len(text)), rng.choice([0, 0, 1, 30])
            text = text[:at] + rng.choice([*pieces, ""]) + text[at + length :]
        path.write_text(text, encoding="utf-8")
        try:
            recipe = load_recipe(path)
        except UserError as error:
            refused += str(error).split("\n")
            continue
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(path) == recipe
        read += 1
    assert all(line.isprintable() and line for line in refused)
    assert 5 < read < 200


ENCODERS: dict[str, dict[str, Any]] = {
    "timm": {"backbone": "resnet34"},
    "monai": {"network": "SegResNet", "arguments": {"init_filters": 32}},
    "swin_unetr": {"feature_size": 24},
    "plain_conv": {"channels": [64, 128, 256]},
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_large_network_is_counted_and_then_made(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever catches what goes wrong in between, and wherever its layers are made."""

    def create() -> nn.Module:
        encoder = {"kind": kind} | ENCODERS[kind]
        return zoo.create("pointwise_hippocampus", in_channels=1, num_classes=3, model__encoder=encoder)

    shapes = [p.shape for p in create().parameters()]
    monkeypatch.setattr(network_size, "LARGE", 2**20)
    model = create()
    assert sum(p.nbytes for p in model.parameters()) > 2**20
    assert all(p.device.type == "cpu" for p in model.parameters())
    assert [p.shape for p in model.parameters()] == shapes
    monkeypatch.setattr(network_size, "available", lambda: 2**20)
    with pytest.raises(MemoryShortageError, match="GiB"):
        create()
