"""Mutations: of bytes, of text, and of the trees that JSON and YAML hold."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2.5, -0.0, 1e308, -1e-308, float("nan"), float("inf"), 10**9, 10**18, 2**63),
    *(-(2**63) - 1, 10**30, "", " ", "0", "nan", "\0", "\x1b[31m\x07", "\u202egnp.exe", "\u2028", "\ud800", "a" * 5000),
    *("../../../etc/passwd", "/dev/zero", "/dev/full", "C:\\x", "~", "$HOME", "[bold]x[/]", "%s%n{0}", "é", "e\u0301"),
    *([], {}, [[]], [{}], {"": None}, {"a": {}}, [None], [0, 1, 2], ["x"] * 300, [[1, 2], [3]], {"0": "background"}),
    *(list(range(2000)), {str(i): i for i in range(500)}),
)
"""Values that somebody's file may hold in the place of a sensible one."""
TOKENS = (
    *(
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\x1b[2J",
        b"\r",
        b"\n",
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"'",
        b":",
        b",",
        b"-",
    ),
    *(b"&a", b"*a", b"!!python/object:os.system", b"<<: *a", b"---\n", b"? ", b"|", b">", b"%YAML 9.9\n", b"#"),
    *(b"9" * 400, b"9" * 5000, b"1e999", b"-", b".inf", b"NaN", b"Infinity", b"null", b"true", b"[" * 500, b"{" * 300),
    *(b'{"a":' * 200, b"\xe2\x80\xae", b"\xed\xa0\x80", b"A" * 3000),
)
_MOST = 2**20


def mutated_bytes(random: Random, content: bytes) -> bytes:
    """One to four small harms to `content`."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        content = random.choice(_BYTES)(random, content)[:_MOST]
    return content


def _flip(random: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8)) if changed else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(random: Random, content: bytes) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _delete(random: Random, content: bytes) -> bytes:
    start, length = _span(random, content)
    return content[:start] + content[start + length :]


def _repeat(random: Random, content: bytes) -> bytes:
    start, length = _span(random, content)
    return content[: start + length] + content[start:]


def _overwrite(random: Random, content: bytes) -> bytes:
    start, length = _span(random, content)
    filled = random.choice((b"\0", b"\xff", b"9", b"\x80"))
    return content[:start] + filled * length + content[start + length :]


def _insert(random: Random, content: bytes) -> bytes:
    start = random.randrange(len(content) + 1)
    return content[:start] + random.choice(TOKENS) + content[start:]


def _swap(random: Random, content: bytes) -> bytes:
    start, length = _span(random, content)
    return content[start : start + length] + content[:start] + content[start + length :]


def _replace_word(random: Random, content: bytes) -> bytes:
    words = [word for word in content.replace(b":", b" ").replace(b",", b" ").split() if len(word) < 40]
    return content.replace(random.choice(words), random.choice(TOKENS), 1) if words else content


def _span(random: Random, content: bytes) -> tuple[int, int]:
    start = random.randrange(len(content) + 1)
    return start, min(len(content) - start, random.choice((1, 2, 4, 8, 16, 64, 256)))


_BYTES: tuple[Callable[[Random, bytes], bytes], ...] = (
    *(_flip, _cut, _delete, _repeat, _overwrite, _insert, _swap, _replace_word),
)


def mutated_tree(random: Random, tree: Any) -> Any:
    """A copy of nested lists and mappings with one to three of their places harmed."""
    holder = [copy.deepcopy(tree)]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        container, key = random.choice(_places(holder))
        harm = random.random()
        if harm < 0.6:
            container[key] = copy.deepcopy(random.choice(HOSTILE))
        elif harm < 0.7 and container is not holder:
            del container[key]
        elif harm < 0.8:
            other, at = random.choice(_places(holder))
            container[key] = copy.deepcopy(other[at])
        elif harm < 0.9 and isinstance(container, dict):
            container[random.choice((*map(str, container), *(h for h in HOSTILE if isinstance(h, str))))] = (
                container.pop(key)
            )
        else:
            for _ in range(random.choice((1, 3, 100))):
                container[key] = [container[key]] if random.random() < 0.5 else {"a": container[key]}
    return holder[0]


def _places(holder: list[Any]) -> list[tuple[Any, Any]]:
    """Every (container, key) below `holder`, down to a depth that mutations do not pass."""
    found: list[tuple[Any, Any]] = []
    level: list[Any] = [holder]
    for _ in range(20):
        places = [(c, k) for c in level for k in (c if isinstance(c, dict) else range(len(c)))]
        found += places
        level = [c[k] for c, k in places if isinstance(c[k], dict | list)]
    return found


def json_bytes(random: Random, tree: Any) -> bytes:
    """A mutated JSON document: its tree, its text, or both; now and then one that was made to hurt."""
    if random.random() < 0.02:
        return random.choice(JSON_BOMBS)
    content = tree if random.random() < 0.3 else mutated_tree(random, tree)
    text = json.dumps(content).encode("utf-8", "surrogatepass")
    return mutated_bytes(random, text) if content is tree or random.random() < 0.2 else text


JSON_BOMBS = (
    *(b"[" * 100_000, b'{"a":' * 100_000, b"[" * 400 + b"]" * 400, b"9" * 5000, b"-" + b"1" * 100_000),
    *(b'{"labels": ' + b"9" * 5000 + b"}", b'{"a": 1, "a": 2}', b"", b"null", b"[]", b"{}", b'"x"', b"\xff\xfe{\0}\0"),
    *(
        b"[" + b"{}," * 200_000 + b"{}]",
        b'{"a": "' + b"x" * 2_000_000 + b'"}',
        b"NaN",
        b"\xef\xbb\xbf{}",
        b"{}" + b" " * 2**20,
    ),
)
