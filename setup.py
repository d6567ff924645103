"""Builds shmlog._core, the cffi module that holds all of csrc/, and installs the folder perf/ as shmlog.bench; everything else stands in
pyproject.toml."""

import platform
import sys

from setuptools import find_packages, setup

if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
    raise SystemExit(
        f"shmlog runs on Linux on x86-64 and aarch64 only (it is built on futexes, pidfds and /dev/shm); "
        f"this is {platform.system()} on {platform.machine()}."
    )

setup(
    cffi_modules=["shmlog/_build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    packages=[*find_packages(include=["shmlog", "shmlog.*"]), "shmlog.bench"],
    package_dir={"shmlog.bench": "perf"},
    package_data={"shmlog": ["py.typed", "include/shmlog.h"], "shmlog.bench": ["*.c", "*.h", "*.md"]},
)
