"""Recipes, overrides, grids and cards of components: YAML from outside."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import yaml

from maskmed_zoo import registry
from maskmed_zoo.ablation.grid import built_in, load_grid
from maskmed_zoo.build import network_facts
from maskmed_zoo.recipe import dump_recipe, load_recipe
from tests.conftest import TINY
from tests.fuzz.harness import GIVEN, Target
from tests.fuzz.mutate import HOSTILE, mutated_bytes, mutated_tree

BOMBS = (
    b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
        b"%c: &%c [*%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c]\n" % (n, n, *[n - 1] * 9) for n in b"bcdefghijk"
    ),
    b"a: &a {x: 1}\n" + b"".join(b"k%d: {<<: *a, y: *a}\n" % n for n in range(5000)),
    b"&a [*a]", b"&a {b: *a}", b"[" * 20_000, b"{a: " * 5000, b"- " * 20_000, b"? " * 5000, b"a: " + b"9" * 5000,
    b"!!python/object/apply:os.system [ls]", b"!!binary aGVsbG8=", b"--- a\n--- b\n", b"\0", b"\xff\xfea\0",
    b"%YAML 1.2\n---\n{}",     b"x: 1\n" * 100_000, b"a" * 5_000_000, b"- a\n" * 300_000,
    b"".join(b"k%d: 1\n" % n for n in range(100_000)),
    b'"' + b"\\x41" * 100_000 + b'"', b"!!set {a, b}", b"!<tag:yaml.org,2002:map> {a: 1}", b"{? [a]: 1}",
    b"a: !!float x",
)  # fmt: skip
NUMBERS = (10**9, 10**6, 0, -1, 2**63, 10**30, 1e18)


def _recipes(folder: Path) -> list[tuple[bytes, Any]]:
    del folder
    texts = [registry.recipe_file(card).read_bytes() for card in registry.find(kind="model")]
    texts += [TINY.encode()] * len(texts)
    return [(text, yaml.safe_load(text)) for text in texts]


def _hostile(random: Random, text: bytes, tree: Any) -> bytes:
    """A harmed document: made to hurt, harmed as text, or as a tree, with far too large numbers now and then."""
    chance = random.random()
    if chance < 0.02:
        return random.choice(BOMBS)
    if chance < 0.4:
        return mutated_bytes(random, text)
    tree = mutated_tree(random, tree)
    if chance > 0.85:
        tree = _with_large_number(random, tree)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def _with_large_number(random: Random, tree: Any) -> Any:
    """One of the numbers in the document exchanged, so that the rest stays valid."""
    places: list[tuple[Any, Any]] = []
    level: list[Any] = [tree]
    while level := [c for c in level if isinstance(c, dict | list)]:
        inside = [(c, k) for c in level for k in (c if isinstance(c, dict) else range(len(c)))]
        places += [(c, k) for c, k in inside if isinstance(c[k], int | float)]
        level = [c[k] for c, k in inside][:2000]
    if places:
        container, key = random.choice(places)
        container[key] = random.choice(NUMBERS)
    return tree


def _read_recipe(original: list[tuple[bytes, Any]], random: Random, folder: Path) -> None:
    text, tree = random.choice(original)
    path = folder / GIVEN / "recipe.yaml"
    path.write_bytes(_hostile(random, text, tree))
    recipe = load_recipe(path)
    again = folder / GIVEN / "again.yaml"
    again.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(again) == recipe, "a recipe that was read is written so that it reads back as the same"
    if random.random() < 0.2:
        network_facts(recipe)


def _override(original: list[tuple[bytes, Any]], random: Random, folder: Path) -> None:
    del original, folder
    path = (
        random.choice(PATHS) if random.random() < 0.7 else ".".join(random.choices(WORDS, k=random.choice((1, 2, 500))))
    )
    network_facts(load_recipe("maskmed_phantom", [f"{path}={random.choice(VALUES)}"]))


WORDS = ("model", "encoder", "channels", "kind", "train", "data", "labels", "", "0", "\x1b[31m", "a" * 300, "é")
PATHS = (
    *("model.encoder.kind", "model.encoder.channels", "model.encoder", "model.neck.kind", "model.neck.width", "model"),
    *("model.neck.points", "model.head.num_queries", "model.head.width", "model.decoder.blocks", "model.loss.points"),
    *("data.patch_size", "data.spacing", "data.labels", "data.channels", "train.epochs", "train.optimizer.lr", "name"),
    *("inference.overlap", "train.batch_size", "data.mirror_axes", "schema_version", "model.encoder.blocks"),
)
VALUES = (
    *map(str, HOSTILE),
    *(
        "[8, 16]",
        "[4, 8, 16]",
        "1",
        "2",
        "16",
        "0.5",
        "[16, 16, 16]",
        "[1, 1, 1]",
        "{a: 1}",
        "null",
        "1e9",
        "10000000000",
    ),
    *(
        "[10000000000, 1]",
        "[100000, 100000, 100000]",
        "fsad",
        "skip",
        "plain_conv",
        "residual",
        "ce_dice",
        "&a [*a]",
        "!!x y",
    ),
    *("{background: 0, a: 1}", "[" * 5000, "{a: " * 3000, "[CT]", "[CT, MR]", "[" + "8, " * 3000 + "8]"),
)


def _grids(folder: Path) -> list[tuple[bytes, Any]]:
    del folder
    return [(path.read_bytes(), yaml.safe_load(path.read_bytes())) for path in built_in().values()]


def _read_grid(original: list[tuple[bytes, Any]], random: Random, folder: Path) -> None:
    path = folder / GIVEN / "grid.yaml"
    path.write_bytes(_hostile(random, *random.choice(original)))
    load_grid(path).recipes()


def _cards(folder: Path) -> list[tuple[bytes, Any]]:
    del folder
    sources = [card.source for card in registry.find() if card.source is not None]
    return [(path.read_bytes(), yaml.safe_load(path.read_bytes())) for path in sources]


def _read_card(original: list[tuple[bytes, Any]], random: Random, folder: Path) -> None:
    """A card of a plug-in, as listing, describing and recipes read it."""
    path = folder / GIVEN / "card.yaml"
    path.write_bytes(_hostile(random, *random.choice(original)))
    card = registry.read_card(path, random.choice(registry.KINDS))
    json.dumps(card.to_json(), ensure_ascii=False)
    if card.kind == "model":
        registry.recipe_file(card)


RECIPES = (
    Target("recipe", 10_000, _recipes, _read_recipe),
    Target("override", 2000, _recipes, _override),
    Target("grid", 2000, _grids, _read_grid),
    Target("component card", 2000, _cards, _read_card),
)
