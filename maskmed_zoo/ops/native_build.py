"""Where the compiled `native.c` is: beside it in a wheel, in the user's cache, or made there, once, in seconds.

The name in the cache holds a hash of source, flags, machine and C library, so no other loads it. The compiler writes
to a name of its own, which is moved into place when complete: processes that build at the same time do no harm.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("native.c")
SHIPPED = Path(__file__).with_name("_native.so")
# No NaN is lost by these: comparisons and sums keep their meaning, only traps and errno are not kept.
FLAGS = ("-O2", "-funroll-loops", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-pthread")
COMPILERS = ("cc", "gcc", "clang")
PATIENCE = 300  # seconds


def compiler() -> str | None:
    """The C compiler on the path, if there is one."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def build(target: Path) -> None:
    """Compile to `target`. Raises `OSError` or `subprocess.SubprocessError` and leaves nothing behind if that fails."""
    found = compiler()
    if found is None:
        raise FileNotFoundError(f"no C compiler: none of {', '.join(COMPILERS)} is on the path")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        unfinished = Path(folder) / target.name
        subprocess.run(
            [found, *FLAGS, "-o", str(unfinished), str(SOURCE)], check=True, capture_output=True, timeout=PATIENCE
        )
        unfinished.replace(target)


def cached(folder: Path | None = None) -> Path:
    """The library's place in `folder`, by default the user's cache."""
    key = hashlib.sha256(SOURCE.read_bytes())
    key.update(" ".join([*FLAGS, sys.platform, platform.machine(), *platform.libc_ver()]).encode())
    if folder is None:
        from maskmed_zoo.files import cache_folder  # building a wheel, there is no package to import from

        folder = cache_folder()
    return folder / f"deformable_attention-{key.hexdigest()[:16]}.so"


def library() -> Path:
    """The compiled library, made first if need be; raises as `made` does."""
    return SHIPPED if SHIPPED.exists() else made()


def made(folder: Path | None = None) -> Path:
    """The library in `folder`, by default the cache; raises as `build` does, or `RuntimeError` without a home."""
    path = cached(folder)
    if not path.exists():
        build(path)
    return path
