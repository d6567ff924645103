"""The minimal ring behind METH_FASTCALL, compiled into build/perf when its source is newer."""

from __future__ import annotations

import importlib.util
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def module() -> Any:
    """End(address of a ring): put(bytes), get() (spins), put_many(list), get_many(n); RING_BYTES, what a ring takes."""
    source = ROOT / "perf" / "minimal_ring_ext.c"
    path = ROOT / "build" / "perf" / f"minimal_ring_ext{sysconfig.get_config_var('EXT_SUFFIX')}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.stat().st_mtime < max(source.stat().st_mtime, source.with_name("minimal_ring.h").stat().st_mtime):
        include = sysconfig.get_path("include")
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", f"-I{include}", "-o", str(path), str(source)], check=True)
    spec = importlib.util.spec_from_file_location("minimal_ring_ext", path)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
