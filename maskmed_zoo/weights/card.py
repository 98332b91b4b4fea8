"""Exported weights: a folder with a card that says what they are, checked before anything in it is used.

```
card.json            format, recipe, data, license, metrics, and size and sha256 of every other file
recipe.yaml          the network, and how it was trained
weights.safetensors
README.md            the card for people, with the head that model hubs read
pipeline.json        of a whole pipeline: what stands before and after the network
network.pt2          the network as a program of torch.export
network.onnx         the network as an ONNX graph
predict_onnx.py      a program that predicts with it
```

A card comes from outside, so its names are checked before they become paths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from maskmed_zoo import renamed
from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.files import is_file, parse_json, read_text, sha256_of
from maskmed_zoo.weights.files import LARGEST

FORMAT = 1
CARD, RECIPE, WEIGHTS, README = "card.json", "recipe.yaml", "weights.safetensors", "README.md"
"""In an exported folder; the second in a run too."""
POSTPROCESSING = "postprocessing.json"
"""What `postprocess` chose, for these weights; in the folder of a run or a study too."""
PIPELINE, PROGRAM, GRAPH, RUNNER = "pipeline.json", "network.pt2", "network.onnx", "predict_onnx.py"
"""In the folder of a whole pipeline, with one of the two networks; the last runs the second."""
RUN_WEIGHTS = "weights_last.safetensors"
"""Of a run that has finished an epoch."""
FILES = (RECIPE, WEIGHTS, README, POSTPROCESSING, PIPELINE, PROGRAM, GRAPH, RUNNER)
"""What an exported folder may hold beside its card."""
LARGEST_CARD = 2**20
"""Bytes that a card may have."""
LONGEST_FILE_NAME = 255
"""Bytes of a name that disks take."""
SHA256 = re.compile(r"[0-9a-f]{64}")
HUB_LICENSES = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0")


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and checksum of a file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileFacts:
        """Of a file on disk."""
        return cls(path.stat().st_size, sha256_of(path))

    def check(self, path: Path) -> None:
        """Raise `CheckpointError` unless the file is whole and the one described."""
        if not is_file(path):
            raise CheckpointError(f"{path}: is missing; the card names it, get the weights again")
        try:
            found = FileFacts.of(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the rights") from error
        if found.size != self.size:
            raise CheckpointError(f"{path}: {found.size} bytes, the card says {self.size}; get the weights again")
        if found.sha256 != self.sha256:
            raise CheckpointError(f"{path}: sha256 is not the card's: altered or damaged; get the weights again")


def safe_name(name: str, place: str) -> str:
    """`name` if it is a plain relative path; raises `CheckpointError` for one that leads out of its folder."""
    parts = PurePosixPath(name).parts
    is_plain = bool(parts) and not name.startswith("/") and ".." not in parts and "." not in name.split("/")
    is_plain &= len(name.encode("utf-8", "replace")) <= LONGEST_FILE_NAME
    if not is_plain or "" in name.split("/") or any(c in name for c in '\\:\0"*?<>|') or not name.isprintable():
        raise CheckpointError(f"{place}: the name {name[:80]!r} leads out of the folder or is no plain name; refused")
    return name


def read_card(path: Path) -> tuple[dict[str, Any], dict[str, FileFacts]]:
    """A card and the files it names; raises `CheckpointError` for one that is broken, or names other files."""
    try:
        text = read_text(path, largest=LARGEST_CARD, error=CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"not a card of exported weights: {error}") from error
    try:
        card = _checked(parse_json(text, "its text", error=CheckpointError), str(path))
        named = cast(dict[str, Any], card["files"])
        for name in named:
            safe_name(name, str(path))
        if not {RECIPE, WEIGHTS} <= named.keys() <= set(FILES):
            raise ValueError(f"names {', '.join(sorted(named))}, expected {', '.join(FILES)}")
        return card, {name: _facts(entry) for name, entry in named.items()}
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{path}: not a card of exported weights ({error}); export them again") from error


def _checked(content: Any, place: str) -> dict[str, Any]:
    """What a card must hold, and of the rest that what is used of it is of its kind; raises `ValueError`."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"'format' is not {FORMAT}")
    card = renamed.update_card(cast(dict[str, Any], content), place)
    for key in ("name", "license"):
        if not isinstance(card.get(key), str) or not card[key].isprintable():
            raise ValueError(f"'{key}' is no line of text")
    if isinstance(card.get("files"), dict):
        return card
    raise ValueError("'files' is no mapping of names to sizes and checksums")


def _facts(entry: Any) -> FileFacts:
    facts = cast(dict[str, Any], entry) if isinstance(entry, dict) else {}
    size, sha256 = facts.get("size"), facts.get("sha256")
    if type(size) is not int or not 0 <= size <= LARGEST:
        raise ValueError(f"a size is not between 0 and {LARGEST}")
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise ValueError("a sha256 is not 64 hexadecimal digits")
    return FileFacts(size, sha256)


def check_exported(folder: Path) -> dict[str, Any]:
    """The card of an exported folder, after checking every file it names."""
    card, facts = read_card(folder / CARD)
    for name, fact in facts.items():
        if (folder / name).is_symlink():
            raise CheckpointError(f"{folder / name}: is a link, expected a file; get the weights again")
        fact.check(folder / name)
    return card


def _hub_license(license: str) -> list[str]:
    """The hub knows a list of names, and refuses others unless they are declared as such."""
    if license.lower() in HUB_LICENSES:
        return [f"license: {license.lower()}"]
    return ["license: other", f"license_name: {json.dumps(re.sub(r'[^a-z0-9.]+', '-', license.lower()).strip('-'))}"]


def readme(card: dict[str, Any], files: Collection[str] = ()) -> str:
    """The card for people, with how to use the further `files`; the head is what model hubs read."""
    metrics = card["metrics"] or {}
    scores = [f"* {name}: {value}" for name, value in metrics.items()] or ["* not evaluated"]
    return "\n".join(
        [
            "---",
            *_hub_license(str(card["license"])),
            "library_name: maskmed-zoo",
            "tags: [medical, image-segmentation]",
            "---",
            f"# {card['name']}",
            "",
            f"Weights of the recipe `{card['recipe']}` of maskmed-zoo, trained on {card['data']['dataset']}, fold "
            f"{card['data']['fold']}, seed {card['data']['seed']}. License: {card['license']}.",
            "",
            f"Channels: {', '.join(card['channels'])}. Labels: {', '.join(card['class_names'])}.",
            "",
            *scores,
            "",
            "Research software, no medical device.",
            "",
            "```python",
            "import maskmed_zoo as zoo",
            "",
            f'model = zoo.create("DIR/{RECIPE}", pretrained="DIR")',
            "```",
            "",
            *_usage(files),
        ]
    )


def _usage(files: Collection[str]) -> list[str]:
    """What to do with the network of a whole pipeline."""
    if RUNNER in files:
        return [
            f"`{RUNNER}` predicts with `{GRAPH}` and `{PIPELINE}` beside it, without this package and PyTorch:",
            "",
            "```bash",
            "pip install numpy scipy nibabel onnxruntime",
            f"python DIR/{RUNNER} IMAGES OUT",
            "```",
            "",
        ]
    if PROGRAM in files:
        return [
            f"`{PROGRAM}` is the network for PyTorch alone, `{PIPELINE}` says what stands before and after it:",
            "",
            "```python",
            "import torch",
            "",
            f'network = torch.export.load("DIR/{PROGRAM}").module()',
            "```",
            "",
        ]
    return []
