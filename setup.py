"""Builds shmlog._core, the cffi module that holds all of csrc/, and from csrc/pyext.c (which is empty there) shmlog._fast.

The folder perf/ is installed as shmlog.bench. Everything else stands in pyproject.toml. shmlog works without _fast, by cffi alone: it is left out with
SHMLOG_WITHOUT_FAST=1, and where it does not compile.
"""

import os
import platform
import sys
import sysconfig

from setuptools import Extension, find_packages, setup

if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
    raise SystemExit(
        f"shmlog runs on Linux on x86-64 and aarch64 only (it is built on futexes, pidfds and /dev/shm); "
        f"this is {platform.system()} on {platform.machine()}."
    )

# The stable ABI knows no free-threaded build: there the extension is made for one version of Python.
abi3 = not sysconfig.get_config_var("Py_GIL_DISABLED")
fast = Extension(
    "shmlog._fast",
    ["csrc/pyext.c"],
    include_dirs=["csrc"],
    depends=["csrc/atomic.h", "csrc/core.h", "csrc/format.h"],
    define_macros=[("SL_PYEXT", None), *([("Py_LIMITED_API", "0x030B0000")] if abi3 else [])],
    py_limited_api=abi3,
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
    optional=True,
)

setup(
    ext_modules=[] if os.environ.get("SHMLOG_WITHOUT_FAST") else [fast],
    cffi_modules=["shmlog/_build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    packages=[*find_packages(include=["shmlog", "shmlog.*"]), "shmlog.bench", "shmlog.bench.peers"],
    package_dir={"shmlog.bench": "perf"},
    package_data={"shmlog": ["py.typed", "include/shmlog.h"], "shmlog.bench": ["*.c", "*.h", "*.md", "java/*.java"]},
)
