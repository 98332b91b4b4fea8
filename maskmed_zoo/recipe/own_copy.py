"""A recipe's text as somebody's own: named after its file, and without what was reached with the one it came from.

A header comment says which scores the recipe reached. They belong to it as it was trained; a copy is to be changed.
"""

from __future__ import annotations

import re
import shlex
import textwrap

from maskmed_zoo.recipe.strict_yaml import scalar
from maskmed_zoo.settings import LONGEST_NAME

CLAIM = re.compile(r"\bdice\b|\bscores?\b|\breached\b|\bpublished\b|\bmeasured here\b|\bceiling\b", re.IGNORECASE)
_NUMBER = re.compile(r"\.\d{2}|\d\.\d")
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9])")
_WIDTH = 118


def own_copy(text: str, file: str) -> str:
    """The text of a recipe for a file of that name; comments stay, but sentences of its header that claim a score."""
    found = re.search(r"^name:\s*['\"]?([\w.-]+)['\"]?", text, re.MULTILINE)
    if found is None:
        return text
    name = name_of(file.rpartition(".")[0])
    old, new = found[1], name if isinstance(scalar(name), str) else f"'{name}'"
    text = f"{text[: found.start()]}name: {new}{text[found.end() :]}"
    lines = text.split("\n")
    end = next((index for index, line in enumerate(lines) if not line.startswith("#")), 0)
    return "\n".join([*_header(lines[:end], old, file), *lines[end:]])


def _header(lines: list[str], old: str, file: str) -> list[str]:
    """The header's paragraphs; indented lines are commands, which get the new file and name."""
    result: list[str] = []
    paragraph: list[str] = []
    for line in [*lines, "#"]:
        if line.strip() == "#" or line.startswith("#   ") or line.startswith("# yaml-language-server"):
            result += _without_claims(paragraph)
            paragraph = []
            command = line.replace(f"train {old} ", f"train {shlex.quote(file)} ")
            run = f"runs/{name_of(file.rpartition('.')[0])}"
            result.append(re.sub(rf"runs/{re.escape(old)}(?![\w.-])", run, command))
        else:
            if line.startswith("# Hardware:"):
                result += _without_claims(paragraph)
                paragraph = []
            paragraph.append(line.removeprefix("#").strip())
    while result and result[-1].strip() == "#":
        result.pop()
    return result


def _without_claims(paragraph: list[str]) -> list[str]:
    sentences = _SENTENCES.split(" ".join(paragraph))
    kept = [sentence for sentence in sentences if not (CLAIM.search(sentence) and _NUMBER.search(sentence))]
    if len(kept) == len(sentences):
        return [f"# {line}" for line in paragraph]
    return textwrap.wrap(" ".join(kept), _WIDTH, initial_indent="# ", subsequent_indent="# ")


def name_of(stem: str) -> str:
    """A recipe's name after that of a file or a data set: other characters than a name may have become `_`."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", stem)[:LONGEST_NAME].lstrip("_.-") or "recipe"
