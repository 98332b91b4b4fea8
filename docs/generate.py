"""Pages made from the code: the recipe's keys from its schema, the components from their cards and configs, what
every recipe and every row of an ablation is made of, the commands from their parsers, the metrics from their
declarations, and the measured table of backbones.

Called by conf.py at every build; writes to reference/generated/, which is not kept in the repository.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import commands

import maskmed_zoo as zoo
from maskmed_zoo import registry
from maskmed_zoo.ablation.grid import built_in, load_grid
from maskmed_zoo.ablation.plan import build_rows
from maskmed_zoo.build import network_facts
from maskmed_zoo.evaluation.metrics import Metric, metrics
from maskmed_zoo.recipe import load_recipe, recipe_type

FOLDER = Path(__file__).resolve().parent / "reference" / "generated"
SECTIONS = {"data": "DataRecipe", "data.augmentation (nnunet)": "NNUNetAugmentation",
            "data.augmentation (light)": "LightAugmentation", "train": "TrainRecipe",
            "train.optimizer": "Optimizer", "inference": "InferenceRecipe", "evaluation": "MetricSettings"}  # fmt: skip
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
HEADING = (
    "| model | encoder, M | neck, M | decoder, M | head, M | total, M parameters | patch, z y x | GMACs per patch |",
    "|---|---|---|---|---|---|---|---|",
)
HIDDEN_FACTS = ("name", "kind", "summary")


def main() -> None:
    """Write the pages."""
    schema = recipe_type().model_json_schema()
    FOLDER.mkdir(parents=True, exist_ok=True)
    write("recipe.md", recipe_page(schema))
    write("components.md", components_page())
    write("models.md", models_page())
    write("backbones.md", backbones_page())
    write("cli.md", commands.page())
    write("metrics.md", metrics_page())


def write(name: str, text: str) -> None:
    """Only where something changed, so that a rebuild stays quick."""
    path = FOLDER / name
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def recipe_page(schema: dict[str, Any]) -> str:
    definitions = schema["$defs"]
    found = set(definitions) & set(SECTIONS.values())
    if found != set(SECTIONS.values()):
        raise SystemExit(f"docs/generate.py: the schema has no {set(SECTIONS.values()) - found}; correct SECTIONS")
    lines = ["## Top level", "", *table(schema, definitions), ""]
    for path, name in SECTIONS.items():
        lines += [f"## `{path}`", "", definitions[name]["description"], "", *table(definitions[name], definitions), ""]
    return "\n".join(lines)


def components_page() -> str:
    lines: list[str] = []
    for kind in registry.COMPONENT_KINDS:
        lines += [f"## {registry.FOLDERS[kind].capitalize()}", ""]
        for name in zoo.list(kind=kind):
            facts = zoo.describe(name)
            config = registry.component(name, kind).Config.model_json_schema()
            rows = [f"**{key}**: {text(value)}" for key, value in facts.items() if key not in HIDDEN_FACTS]
            settings = table(config, config.get("$defs", {}), skip=("kind",))
            shown = ["", *settings] if len(settings) > 2 else ["", "No settings."]
            lines += [
                f"### `{name}`",
                "",
                f"{capital(facts['summary'])}.",
                "",
                *(f"- {row}" for row in rows),
                *shown,
                "",
            ]
    lines += ["## Models", "", "| name | what it is | recipe |", "|---|---|---|"]
    for name in zoo.list(kind="model"):
        facts = zoo.describe(name)
        lines.append(f"| `{name}` | {facts['summary']} | `recipes/{facts['recipe']}` |")
    return "\n".join([*lines, ""])


def models_page() -> str:
    """Parameters of every part and multiplications of a patch, for every recipe and every row of a grid."""
    lines = ["## Recipes", "", *HEADING]
    lines += [row(f"`{name}`", network_facts(load_recipe(name))) for name in zoo.list(kind="model")]
    for name in built_in():
        grid = load_grid(name)
        networks, _ = build_rows(grid, grid.recipes())
        lines += ["", f"## Ablation `{name}`", "", *HEADING]
        lines += [row(label, networks[label]) for label in grid.grid.rows]
    return "\n".join([*lines, ""])


def backbones_page() -> str:
    """The rows of benchmarks/backbones.csv, with the machine and the day they were measured."""
    with (FOLDER.parents[1] / "benchmarks" / "backbones.csv").open(newline="", encoding="utf-8") as file:
        measured = list(csv.DictReader(file))
    lines = [
        "| backbone | encoder, decoder | neck | head | levels | M parameters | GMACs | CPU s per step |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for cell in measured:
        seconds = f"{float(cell['cpu_seconds_per_step']):.2f}"
        numbers = [f"{int(cell['parameters']) / 1e6:.2f}", f"{int(cell['macs']) / 1e9:.1f}"]
        parts = f"`{cell['encoder']}`, `{cell['decoder']}`"
        named = [cell["backbone"], parts, f"`{cell['neck']}`", f"`{cell['head']}`", cell["levels"]]
        lines.append(f"| {' | '.join([*named, *numbers, seconds])} |")
    where = {f"{c['machine']}, torch {c['torch']}, patch {c['patch']}, {c['date'][:7]}" for c in measured}
    return "\n".join([*lines, "", f"Measured on: {'; '.join(sorted(where))}.", ""])


def metrics_page() -> str:
    """What every metric declares."""
    lines: list[str] = []
    for name, metric in sorted(metrics().items()):
        lines += [f"## `{name}`", "", *(f"- **{key}**: {value}" for key, value in declared(metric).items()), ""]
    return "\n".join(lines)


def declared(metric: Metric) -> dict[str, str]:
    """The fields of a metric in words, then the sentences that stand in every file of scores."""
    return {
        "title": metric.title,
        "unit": metric.unit or "none",
        "better": "higher" if metric.higher_is_better else "lower",
        "definition": metric.definition,
        "absent in reference and prediction": "left out and counted"
        if metric.both_absent is None
        else f"{metric.both_absent:g}",
        "absent in one of them": metric.one_absent_words,
        "in every file of scores": metric.rules(),
    }


def row(label: str, facts: dict[str, Any]) -> str:
    parts, kinds = facts["parameters"], facts["components"]
    cells = [f"`{kinds[part]}` {parts[part] / 1e6:.2f}" for part in ("encoder", "neck", "decoder", "head")]
    patch = " x ".join(map(str, facts["patch_size"]))
    total = f"{facts['total_parameters'] / 1e6:.2f}"
    return f"| {label} | {' | '.join(cells)} | {total} | {patch} | {facts['macs'] / 1e9:.1f} |"


def table(schema: dict[str, Any], definitions: dict[str, Any], skip: tuple[str, ...] = ()) -> list[str]:
    rows = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    required = schema.get("required", [])
    for key, value in schema["properties"].items():
        if key in skip:
            continue
        default = "required" if key in required else default_of(value, definitions)
        meaning = value.get("description", "") if "$ref" not in value else ""
        rows.append(f"| `{key}` | {takes(value, definitions)} | {default} | {text(meaning)} |")
    return rows


def default_of(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    default = value.get("default")
    is_section = "$ref" in value and "properties" in definitions.get(value["$ref"].split("/")[-1], {})
    return "its defaults" if is_section else f"`{json.dumps(default, ensure_ascii=False)}`"


def takes(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON Schema type in words."""
    if "$ref" in value:
        name = value["$ref"].split("/")[-1]
        return next((f"section `{path}`" for path, section in SECTIONS.items() if section == name), "a section")
    if "const" in value or "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value.get("enum", [value.get("const")]))
    if "anyOf" in value or "oneOf" in value:
        return " or ".join(takes(part, definitions) for part in value.get("anyOf", value.get("oneOf")))
    return plain(value, definitions)


def plain(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    """The words for a list, a mapping, a number or a text."""
    kind = str(value.get("type", "anything"))
    if "prefixItems" in value:
        return f"[{', '.join(takes(part, definitions) for part in value['prefixItems'])}]"
    if kind == "array":
        return f"list of {takes(value['items'], definitions)}"
    if kind == "object":
        inner = value.get("additionalProperties")
        return f"mapping of names to {takes(inner, definitions)}" if isinstance(inner, dict) else "a section"
    bounds = ", ".join(f"{sign} {value[key]}" for key, sign in BOUNDS.items() if key in value)
    return f"{kind} {bounds}" if bounds else kind


def text(value: Any) -> str:
    return str(value).strip().replace("|", "\\|")


def capital(sentence: str) -> str:
    """With a capital, unless the first word has its own ("nnU-Net")."""
    word = sentence.split(maxsplit=1)[0]
    return sentence if word != word.lower() else sentence[:1].upper() + sentence[1:]


if __name__ == "__main__":
    main()
