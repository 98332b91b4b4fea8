"""Builds `native.c` into the wheel where a C compiler is there; else the wheel is pure Python. Only hatchling reads it.

The library knows nothing of Python or PyTorch, so one wheel per platform serves every version of both.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeHook(BuildHookInterface[Any]):
    """Compiles into a folder of its own, so that the source tree stays as it was."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library and the platform's tag; an editable install builds on first use instead."""
        if version == "editable" or sys.platform != "linux":
            return
        # The package is not importable yet.
        path = Path(self.root) / "maskmed_zoo" / "ops" / "native_build.py"
        spec = importlib.util.spec_from_file_location("native_build", path)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(path)
        native_build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(native_build)
        self._folder = tempfile.TemporaryDirectory()
        library = Path(self._folder.name) / native_build.SHIPPED.name
        try:
            native_build.build(library)
        except (OSError, subprocess.SubprocessError) as error:
            self.app.display_warning(f"no compiled deformable attention in this wheel: {error}")
            return
        build_data["force_include"][str(library)] = f"maskmed_zoo/ops/{library.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled."""
        del version, build_data, artifact_path
        if hasattr(self, "_folder"):
            self._folder.cleanup()
