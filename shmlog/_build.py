"""The one cffi builder: makes shmlog._core out of csrc/, with declarations read from the C headers themselves.

cffi gets what stands between the marks /* cffi:begin */ and /* cffi:end */ of csrc/format.h and csrc/core.h, verbatim but for
macros, which it knows as integers only: `#define X 5` stays (it may be an array's length), a constant expression becomes
`#define X ...` (the compiler supplies the value), and other macros are left out.
In API mode the compiler checks each struct and prototype against the header, so nothing here can drift from C.

setup.py calls it through cffi_modules; `python shmlog/_build.py` prints the declarations.
"""

from __future__ import annotations

import re
from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parent.parent
HEADERS = ("format.h", "core.h")  # in this order: core.h uses the types of format.h

_REGION = re.compile(r"/\* cffi:begin \*/(.*?)/\* cffi:end \*/", re.DOTALL)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DEFINE = re.compile(r"[ \t]*#[ \t]*define[ \t]+(\w+)(\()?(.*)")
_NUMBER = re.compile(r"\b(?:0[xX][0-9a-fA-F]+|[0-9]+)[uUlL]*\b")
_OPERATORS = re.compile(r"[\s()+\-*/%|&^~<>]*")


def declarations(csrc: Path) -> str:
    """The marked regions of the headers, as cffi's cdef takes them."""
    parts = []
    for name in HEADERS:
        path = csrc / name
        if not path.exists():
            raise SystemExit(f"shmlog: {path} is missing; this is not a complete source tree (an sdist without MANIFEST.in?)")
        text = path.read_text(encoding="utf-8")
        regions = _REGION.findall(text)
        if not regions or text.count("cffi:begin") != len(regions) or text.count("cffi:end") != len(regions):
            raise SystemExit(f"shmlog: {path} needs /* cffi:begin */ and /* cffi:end */ in pairs")
        parts += regions
    return _macros_to_constants("\n".join(parts))


def _macros_to_constants(text: str) -> str:
    constants: set[str] = set()

    def is_integer(body: str) -> bool:
        body = _NUMBER.sub("", body)
        words = set(re.findall(r"\w+", body))
        return words <= constants and _OPERATORS.fullmatch(re.sub(r"\w+", "", body)) is not None

    lines = []
    # Comments go first, for a comment behind a macro may run over several lines; their newlines stay.
    text = _COMMENT.sub(lambda m: " " + "\n" * m.group().count("\n"), text)
    for line in text.replace("\\\n", " ").split("\n"):
        define = _DEFINE.match(line)
        if not define:
            lines.append(line)
            continue
        name, is_function, body = define.groups()
        if not is_function and body.strip() and is_integer(body):
            constants.add(name)
            lines.append(line if _NUMBER.fullmatch(body.strip()) else f"#define {name} ...")
    return "\n".join(lines)


def make(csrc: Path) -> cffi.FFI:
    builder = cffi.FFI()
    builder.cdef(declarations(csrc))
    builder.set_source(
        "shmlog._core",
        "".join(f'#include "{name}"\n' for name in HEADERS),
        sources=sorted(f"{csrc.name}/{path.name}" for path in csrc.glob("*.c")),
        depends=sorted(f"{csrc.name}/{path.name}" for path in csrc.glob("*.h")),
        include_dirs=[csrc.name],
        extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden", "-pthread"],
        extra_link_args=["-pthread"],
    )
    return builder


if __name__ == "__main__":
    print(declarations(ROOT / "csrc"))
else:
    ffibuilder = make(ROOT / "csrc")
