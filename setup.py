"""Builds the C parts; everything else stands in pyproject.toml.

shmlog._core (cffi) holds all of csrc/; shmlog._fast (METH_FASTCALL wrappers for the per-record calls) is given the core's
functions by address at run time.
"""

import platform
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
    raise SystemExit(
        f"shmlog runs on Linux on x86-64 and aarch64 only (it is built on futexes, pidfds and /dev/shm); "
        f"this is {platform.system()} on {platform.machine()}."
    )

HERE = Path(__file__).parent


class BuildPy(build_py):
    """Puts the public header into the package, for shmlog.get_include()."""

    def run(self):
        super().run()
        header = HERE / "csrc" / "shmlog.h"
        if header.exists() and not getattr(self, "editable_mode", False):
            target = Path(self.build_lib) / "shmlog" / "include"
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(header, target)


fast = Extension(
    "shmlog._fast",
    sources=["csrc/pyext.c"],
    depends=[f"csrc/{path.name}" for path in sorted((HERE / "csrc").glob("*.h"))],
    include_dirs=["csrc"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden", "-pthread"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    py_limited_api=True,
)

setup(
    cffi_modules=["shmlog/_build.py:ffibuilder"],
    ext_modules=[fast] if (HERE / "csrc" / "pyext.c").exists() else [],
    cmdclass={"build_py": BuildPy},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
