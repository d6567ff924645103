"""What is compiled at first use: the minimal ring behind cffi and behind a CPython extension, ends in Java. Kept below the results, by a hash of the
source."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from .harness import HERE, Failed, results_directory

_CDEF = """
    typedef struct { ...; } ring;
    int put(ring *r, const char *data, uint32_t bytes);
    int64_t put_many(ring *r, char **data, uint32_t bytes, int64_t n);
    int64_t get(ring *r, uint64_t *position, char *out);
    int64_t get_many(ring *r, uint64_t *position, int64_t n, char *out);
"""
_SOURCE = """
    #include "minimal_ring.h"
    static int put(ring *r, const char *data, uint32_t bytes) { return ring_put(r, data, bytes); }
    static int64_t put_many(ring *r, char **data, uint32_t bytes, int64_t n) {
        int64_t done = 0;
        while (done < n && ring_put(r, data[done], bytes)) done++;
        return done;
    }
    static int64_t get(ring *r, uint64_t *position, char *out) {
        const uint8_t *data; int64_t n = ring_get(r, position, &data);
        if (n >= 0) { memcpy(out, data, (size_t)n); ring_release(r, *position); }
        return n;
    }
    static int64_t get_many(ring *r, uint64_t *position, int64_t n, char *out) {
        int64_t done = 0; const uint8_t *data; int64_t bytes;
        while (done < n && (bytes = ring_get(r, position, &data)) >= 0) { memcpy(out, data, (size_t)bytes); out += bytes; done++; }
        if (done) ring_release(r, *position);
        return done;
    }
"""


def directory(*parts: str | bytes) -> Path:
    digest = hashlib.sha1(b"\0".join(p if isinstance(p, bytes) else p.encode() for p in parts)).hexdigest()[:16]
    path = results_directory() / "native" / digest
    path.mkdir(parents=True, exist_ok=True)
    return path


def load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def ring_cffi(ring_bytes: int) -> Any:
    import cffi

    name = f"minimal_ring_cffi_{ring_bytes >> 20}"
    here = directory(name, _CDEF, _SOURCE, (HERE / "minimal_ring.h").read_bytes(), sys.version)
    found = next(here.glob(f"{name}*.so"), None)
    if found is None:
        ffi = cffi.FFI()
        ffi.cdef(_CDEF)
        ffi.set_source(name, _SOURCE, include_dirs=[str(HERE)], define_macros=[("RING_BYTES", f"UINT64_C({ring_bytes})")], extra_compile_args=["-O2"])
        with tempfile.TemporaryDirectory(dir=here) as scratch:
            made = Path(ffi.compile(tmpdir=scratch))
            found = here / made.name
            os.replace(made, found)
    return load(name, found)


@functools.cache
def ring_ext(ring_bytes: int) -> Any:
    """The same behind METH_FASTCALL: End(address), RING_BYTES."""
    source = HERE / "minimal_ring_ext.c"
    here = directory(source.read_bytes(), (HERE / "minimal_ring.h").read_bytes(), str(ring_bytes), sys.version)
    found = here / f"{source.stem}.so"
    if not found.exists():
        compile_c([source], found, ["-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", f"-DRING_BYTES=UINT64_C({ring_bytes})"])
    return load(source.stem, found)


@functools.cache
def java_classes(library: str, jars: Path) -> Path:
    """The ends in Java for one library, compiled with its jars."""
    sources = [HERE / "java" / f"{name}.java" for name in ("Bench", library)]
    here = directory(*(p.read_bytes() for p in sources), jars.name)
    found = here / "classes"
    if not found.exists():
        with tempfile.TemporaryDirectory(dir=here) as scratch:
            command = ["javac", "-d", f"{scratch}/classes", "-cp", f"{jars}/*", *map(str, sources)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                raise Failed(f"javac could not compile {library}.java: {' '.join(done.stderr.strip().splitlines()[:1])}")
            with contextlib.suppress(FileExistsError):  # another run was faster
                os.rename(f"{scratch}/classes", found)
    return found


def compile_c(sources: list[Path], to: Path, flags: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=to.parent) as scratch:
        made = Path(scratch) / to.name
        subprocess.run(
            ["gcc", "-std=gnu11", "-O2", *flags, f"-I{HERE}", "-o", str(made), *map(str, sources), "-lpthread"], check=True, capture_output=True
        )
        os.replace(made, to)
