"""What is shipped can be built: the declarations read from C, and the sdist and wheel, installed where nothing of the tree is in reach."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def builder(csrc: Path) -> ModuleType:
    """shmlog/_build.py as setup.py loads it, for another tree."""
    root = csrc.parent
    (root / "shmlog").mkdir(exist_ok=True)
    copy = root / "shmlog" / "_build.py"
    copy.write_text((ROOT / "shmlog" / "_build.py").read_text())
    spec = importlib.util.spec_from_file_location("build_under_test", copy)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def headers(tmp_path: Path, format_h: str, core_h: str = "/* cffi:begin */\n/* cffi:end */") -> Path:
    csrc = tmp_path / "csrc"
    csrc.mkdir()
    (csrc / "format.h").write_text(format_h)
    (csrc / "core.h").write_text(core_h)
    return csrc


def test_declarations_are_the_marked_regions_in_order(tmp_path: Path) -> None:
    csrc = headers(
        tmp_path,
        "int hidden;\n/* cffi:begin */\ntypedef struct { int a; } one;\n/* cffi:end */\n#include <x.h>\n"
        "/* cffi:begin */\ntypedef int two;\n/* cffi:end */\n",
        "/* cffi:begin */\nint three(one *o, two t);\n/* cffi:end */\nint also_hidden;\n",
    )
    text = builder(csrc).declarations(csrc)
    assert [line for line in text.split("\n") if line.strip()] == [
        "typedef struct { int a; } one;",
        "typedef int two;",
        "int three(one *o, two t);",
    ]


def test_only_integer_macros_are_declared(tmp_path: Path) -> None:
    csrc = headers(
        tmp_path,
        """/* cffi:begin */
#define A 5
#define B 0x10ull   /* a comment that
                       goes on */
#define C (-3)      // minus three
#define D (A * 64 \\
           + (1u << 4))
#define STRING "five"
#define CALL(x) (x)
#define UNKNOWN (OTHER + 1)
#define CAST ((int)5)
#define EMPTY
#define CTYPE unsigned
typedef struct { char name[A]; } s;
/* cffi:end */""",
    )
    lines = builder(csrc).declarations(csrc).split("\n")
    assert [" ".join(line.split()) for line in lines if "#" in line] == [
        "#define A 5",
        "#define B 0x10ull",
        "#define C ...",
        "#define D ...",
    ]


@pytest.mark.parametrize("text", ["int a;", "/* cffi:begin */ int a;", "/* cffi:end */ /* cffi:begin */"])
def test_header_without_its_marks_stops_the_build_with_a_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(SystemExit, match="in pairs"):
        builder(headers(tmp_path, text))


def test_missing_header_stops_the_build_with_a_sentence(tmp_path: Path) -> None:
    csrc = headers(tmp_path, "/* cffi:begin *//* cffi:end */")
    (csrc / "core.h").unlink()
    with pytest.raises(SystemExit, match=r"core\.h is missing"):
        builder(csrc)


# --- sdist and wheel ---------------------------------------------------------------------------------------------------


def run(*command: object, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_"))}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist of a copy of the tree: building it in place would leave egg-info behind and run into other tests' builds."""
    tmp = tmp_path_factory.mktemp("sdist")
    run("cp", "-r", "--", ".", tmp / "tree", cwd=ROOT)
    for left in ("build", "dist", ".git", ".venv", "shmlog.egg-info"):
        run("rm", "-rf", tmp / "tree" / left, cwd=tmp)
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", tmp / "dist", cwd=tmp / "tree")
    return next((tmp / "dist").glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel from the sdist alone: what the sdist lacks is missing here."""
    tmp = tmp_path_factory.mktemp("wheel")
    run("tar", "-xzf", sdist, cwd=tmp)  # tarfile would want a filter, which Debian's Python 3.11.2 does not know
    tree = next(tmp.iterdir())
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp / "dist", cwd=tree)
    return next((tmp / "dist").glob("*.whl"))


@pytest.mark.slow
def test_sdist_holds_headers_tests_and_licence(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    here = {str(p.relative_to(ROOT)) for folder in ("csrc", "tests") for p in (ROOT / folder).rglob("*.[chp]*") if p.is_file()}
    here = {name for name in here if "__pycache__" not in name and not name.endswith((".o", ".so", ".pyc"))}
    assert here <= names, here - names
    assert {"LICENSE", "Makefile", ".ci/run", "shmlog/_build.py", "shmlog/py.typed", "pyproject.toml"} <= names


@pytest.mark.slow
def test_wheel_is_for_the_stable_abi_and_holds_no_source(wheel: Path) -> None:
    assert "-cp311-abi3-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "shmlog/_core.abi3.so" in names and "shmlog/py.typed" in names
    assert {"shmlog/bench/peers/ours.py", "shmlog/bench/java/Bench.java", "shmlog/bench/c_bench.c", "shmlog/bench/minimal_ring.h"} <= set(names)
    assert not [name for name in names if name.startswith(("csrc/", "tests/", "perf/", "examples/"))]


@pytest.mark.slow
def test_installed_wheel_imports_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    # Its own environment but with this one's packages in sight, so that no dependency is downloaded.
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "outer.pth").write_text(f"import sys; sys.path.append({os.path.dirname(os.path.dirname(pytest.__file__))!r})\n")
    out = run(python, "-c", "import shmlog, shmlog._core as c, shmlog.bench as b; [print(m.__file__) for m in (shmlog, c, b)]", cwd=tmp_path)
    assert all(line.startswith(str(site)) for line in out.splitlines()), out
    assert "multiprocessing.Pipe" in run(python, "-m", "shmlog", "bench", "--list", cwd=tmp_path)
