"""Who may import whom (style guide, "Dependency direction"), read from the source of every module, imports within functions included.

    errors types config clock ...  <-  log  <-  broker, coordinator, client
                                               client  <-  gateway, streams
                                               everything  <-  tools, testing

Client on one side, broker and coordinator on the other, meet only in messages.py and in shared memory.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "shmlog"

# A part of the tree is a folder, or "base": the modules right under shmlog/. Part -> parts it may import besides itself.
MAY_IMPORT = {
    "base": set(),
    "log": {"base"},
    "broker": {"base", "log"},
    "coordinator": {"base", "log"},
    "client": {"base", "log"},
    "gateway": {"base", "log", "client"},
    "streams": {"base", "client"},
    "tools": {"base", "log", "broker", "coordinator", "client", "gateway", "streams", "testing"},
    "testing": {"base", "log", "broker", "coordinator", "client", "gateway", "streams"},
}
# Modules of base that everybody imports import nothing but one another, so that they stay cheap and free of cycles.
VOCABULARY = {"errors", "events", "types", "config", "clock", "counters", "partitioner", "messages", "_binding", "_fast"}
# Doors to users, not part of the base though they lie there: each may look at the parts named.
DOORS = {
    "__init__": {"client"},  # lazily, as strings; here for type checkers
    "__main__": {"tools"},
    "aio": {"client"},
    "embedded": {"client"},
    "lifecycle": {"client"},
}
ONLY_IMPORTER = {
    "posix_ipc": "shmlog.shm",
    "zmq": "shmlog.transport",
    "shmlog._core": "shmlog._ffi",
    "shmlog._fast": "shmlog._binding",
    "cffi": "shmlog._build",
}


def imports_of(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Absolute names of all that a module imports. `from a import b` gives a.b: b may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: None if is_package and node.level == 1 else (1 if is_package else 0) - node.level]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def violations(module: str, imported: str) -> Iterator[str]:
    _, _, inner = module.partition(".")
    for package, importer in ONLY_IMPORTER.items():
        if (imported + ".").startswith(package + ".") and module != importer:
            yield f"{module} imports {imported}: only {importer} may import {package}"
    if imported != "shmlog" and not imported.startswith("shmlog."):
        return
    first, _, rest = inner.partition(".")
    part = first if first in MAY_IMPORT and first != "base" else "base"
    target_first = imported.split(".")[1] if "." in imported else ""
    target = target_first if target_first in MAY_IMPORT and target_first != "base" else "base"
    allowed = MAY_IMPORT[part] | (DOORS.get(first or "__init__", set()) if part == "base" else set())
    if target not in allowed | {part}:
        yield f"{module} ({part}) imports {imported}: {part} may import {', '.join(sorted(allowed)) or 'base'} only"
    if part == "base" and not rest and first in VOCABULARY and target == "base" and target_first not in VOCABULARY:
        yield f"{module} imports {imported}: it may import {', '.join(sorted(VOCABULARY))} only"
    if (part != "base" or (first or "__init__") not in DOORS) and target_first in DOORS and part not in ("tools", "testing"):
        yield f"{module} imports {imported}: that is a door for users, nothing inside goes through it"


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def test_every_module_imports_in_the_direction_of_the_layers() -> None:
    found: list[str] = []
    for module, path in modules():
        for imported in imports_of(path.read_text(encoding="utf-8"), module, path.name == "__init__.py"):
            found += violations(module, imported)
    assert not found, "\n".join(found)


def test_every_folder_has_its_place_in_the_layers() -> None:
    folders = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(MAY_IMPORT), f"say in MAY_IMPORT what {folders - set(MAY_IMPORT)} may import"


# The test itself, tested: a rule that nothing can break is no rule.


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("shmlog.client.producer", "import shmlog.broker.server"),
        ("shmlog.client.producer", "from shmlog.coordinator import groups"),
        ("shmlog.client.producer", "from ..broker import server"),
        ("shmlog.client.producer", "from shmlog import broker"),
        ("shmlog.client.producer", "def f():\n    import importlib\n    importlib.import_module('shmlog.broker')"),
        ("shmlog.broker.server", "from shmlog.coordinator import metadata"),
        ("shmlog.coordinator.server", "from shmlog.broker import server"),
        ("shmlog.broker.server", "from shmlog.client.admin import Admin"),
        ("shmlog.log.partition", "from shmlog.client import producer"),
        ("shmlog.streams.runtime", "import shmlog.tools.cli"),
        ("shmlog.client.admin", "from shmlog.testing import cluster"),
        ("shmlog.testing.cluster", "from shmlog.tools import cli"),
        ("shmlog.errors", "from shmlog.log import partition"),
        ("shmlog.config", "from shmlog import shm"),
        ("shmlog.types", "from shmlog._ffi import lib"),
        ("shmlog.log.partition", "import posix_ipc"),
        ("shmlog.broker.server", "import zmq.asyncio"),
        ("shmlog.broker.server", "from zmq import Context"),
        ("shmlog.client.producer", "from shmlog._core import lib"),
        ("shmlog.client.producer", "from shmlog import _core"),
        ("shmlog.client.producer", "from shmlog.embedded import Cluster"),
        ("shmlog.shm", "from shmlog.log import segment"),
    ],
)
def test_import_against_the_direction_is_found(module: str, source: str) -> None:
    assert any(list(violations(module, imported)) for imported in imports_of(source, module, False))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("shmlog.client.producer", "from shmlog.errors import ClosedError\nfrom shmlog import config, messages\nimport shmlog"),
        ("shmlog.client.producer", "from . import consumer\nfrom .consumer import Consumer\nfrom ..log import partition"),
        ("shmlog.broker.server", "from shmlog.transport import connect\nfrom shmlog.log.recovery import recover"),
        ("shmlog.config", "from shmlog.errors import InvalidTopicError"),
        ("shmlog.shm", "import posix_ipc\nfrom shmlog import config"),
        ("shmlog._ffi", "from shmlog._core import ffi, lib"),
        ("shmlog.tools.cli", "from shmlog.broker import server\nfrom shmlog.testing import cluster\nfrom shmlog.cluster import Cluster"),
        ("shmlog.testing.plugin", "from shmlog.cluster import Cluster"),
    ],
)
def test_import_in_the_direction_is_allowed(module: str, source: str) -> None:
    assert [v for imported in imports_of(source, module, False) for v in violations(module, imported)] == []


def test_relative_imports_are_resolved_as_python_does() -> None:
    assert list(imports_of("from . import a\nfrom .b import c\nfrom ..d import e", "shmlog.client", True)) == [
        "shmlog.client.a",
        "shmlog.client.b.c",
        "shmlog.d.e",
    ]
    assert list(imports_of("from . import a\nfrom .. import d", "shmlog.client.x", False)) == ["shmlog.client.a", "shmlog.d"]
