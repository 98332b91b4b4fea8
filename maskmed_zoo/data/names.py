"""Names of cases: what a file may be called after, and what somebody may have meant who wrote another."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

from maskmed_zoo.data.formats import formats
from maskmed_zoo.errors import nearest
from maskmed_zoo.labels import is_visible


def hint(name: str, known: Collection[str]) -> str:
    """`"; …"`: what is nearly `name` among the names known, or an empty string.

    That is one without a file's ending or channel number, the same letters encoded otherwise, or the nearest.
    """
    stem = next((name.removesuffix(ending) for ending in formats() if name.endswith(ending)), name)
    for plain in (stem, re.sub(r"_\d{4}$", "", stem)):
        if plain != name and plain in known:
            return f"; names of cases stand without ending and channel number, as '{plain}'"
    letters = unicodedata.normalize("NFC", name)
    for other in known:
        if unicodedata.normalize("NFC", other) == letters:
            return f"; '{other}' has the same letters, encoded otherwise (Unicode NFC or NFD): write both alike"
    return nearest(name, known)


def is_file_name(name: str) -> bool:
    """Whether files can be called after a case of this name."""
    return is_visible(name) and not name.startswith(".") and not re.search(r"[/\\]", name)
