"""The C programs of the fault tests, and the core with failpoints for processes of a real cluster: built when first asked for, or a source is newer."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "fault"
FLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-pthread", "-g", "-O2", f"-I{ROOT / 'csrc'}"]
CORE = sorted((ROOT / "csrc").glob("*.c"))
HEADERS = [*(ROOT / "csrc").glob("*.h"), *(ROOT / "tests" / "c").glob("*.h")]
SOURCES = [*CORE, *HEADERS, *HERE.glob("*.[ch]"), Path(__file__), ROOT / "shmlog" / "_build.py"]


def failpoints() -> list[str]:
    """The names of all failpoints, from the sources."""
    sources = [path for path in SOURCES if path.parent.name == "csrc" and path.name != "atomic.h"]  # it explains the word
    return sorted({name for path in sources for name in re.findall(r"SL_FAILPOINT\((\w+)\)", path.read_text())})


def _compile(target: Path, *arguments: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}")
    command = [os.environ.get("CC", "gcc"), *FLAGS, *arguments, "-o", str(part), *map(str, CORE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    part.replace(target)  # one that runs keeps its file


def _once(target: Path, *arguments: str) -> Path:
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f".{target.name}.lock").open("w") as lock:  # of parallel test processes one compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists() or any(source.stat().st_mtime > target.stat().st_mtime for source in SOURCES):
            _compile(target, *arguments)
    return target


def crash() -> Path:
    """One cell of the crash matrix; with failpoints."""
    return _once(BUILD / "crash", "-Werror", "-DSL_FAILPOINTS", str(HERE / "crash.c"))


def step() -> Path:
    """Kill and stop at every instruction; the core as it is shipped."""
    return _once(BUILD / "step", "-Werror", str(HERE / "step.c"))


def core_with_failpoints() -> Path:
    """shmlog._core with failpoints, and a folder for PYTHONPATH (failpoints/) that makes a process take it instead of the product's."""
    from shmlog import _build

    BUILD.mkdir(parents=True, exist_ok=True)
    source = BUILD / "_core.c"
    if not source.exists() or source.stat().st_mtime < max(path.stat().st_mtime for path in SOURCES):
        part = source.with_name(f"_core.{os.getpid()}.c")
        _build.make(ROOT / "csrc").emit_c_code(str(part))
        part.replace(source)
    include = f"-I{sysconfig.get_path('include')}"
    return _once(BUILD / "_core.so", "-DSL_FAILPOINTS", "-shared", "-fPIC", "-fvisibility=hidden", include, str(source))
