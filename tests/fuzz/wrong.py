"""A target that goes wrong in every way, to test what the harness counts; light, because it is started often."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

from maskmed_zoo.errors import DataError
from tests.fuzz.harness import Target

WAYS = ("read", "refused", "raw", "unfit", "death", "hang", "leftover")


def _go_wrong(original: None, random: Random, folder: Path) -> None:
    del original
    way = random.choice(WAYS)
    if way == "raw":
        raise KeyError("x")
    if way == "death":
        os._exit(3)
    if way == "hang":
        time.sleep(60)
    if way == "leftover":
        (folder / "left").touch()
    if way in ("refused", "leftover"):
        raise DataError("refused")
    if way == "unfit":
        raise DataError(" ")


WRONG = Target("wrong", 0, lambda folder: None, _go_wrong)
