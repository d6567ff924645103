"""Did somebody make the append slower? Figures that do not depend on the machine's load or speed, against a committed table.

    python -m perf.figures            compares with figures.json; exit code 1 and a line for each figure that has grown
    python -m perf.figures --write    rewrites the table (`make figures`): a change of the table is a change that somebody decided

Locked instructions, system calls, page faults and bytes must be as in the table or less. Instructions depend on the compiler too: they are compared
where gcc has the table's major version, and may grow by 2 % (the C library's part of them differs from one machine to the next).
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
TABLE = HERE / "figures.json"
GROWTH = 1.02
UNTRACEABLE = 3
PARTITIONS = 16


def build() -> Path:
    program = ROOT / "build" / "perf" / "figures"
    program.parent.mkdir(parents=True, exist_ok=True)
    sources = [str(HERE / "figures.c"), *(str(p) for p in sorted((ROOT / "csrc").glob("*.c")) if p.name != "pyext.c")]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'c'}"]
    subprocess.run(["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread", *includes, "-o", str(program), *sources], check=True)
    return program


def compiler() -> str:
    return subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True, check=True).stdout.split(".")[0].strip()


def counted() -> dict[str, Any] | None:
    """None: this machine does not let us look (no ptrace, or not x86-64)."""
    done = subprocess.run([str(build())], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == UNTRACEABLE:
        return None
    if done.returncode:
        raise SystemExit(f"figures: exit {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def idle_partition_bytes() -> int:
    from shmlog import Admin, Cluster, NewTopic

    def objects(suffix: str) -> list[Path]:
        return list(Path("/dev/shm").glob(f"shmlog.{os.getuid()}.{cluster.name}.{suffix}*"))

    def used() -> int:
        return sum(p.stat().st_blocks * 512 for p in objects("[prws]"))  # the tables and the segments; a view is the coordinator's

    with Cluster() as cluster, Admin(cluster.address) as admin:
        before = used()
        admin.create_topics([NewTopic("idle", PARTITIONS)])
        deadline = time.monotonic() + 60
        while len(objects("s")) < PARTITIONS:  # the broker opens them in its own time
            if time.monotonic() > deadline:
                raise SystemExit(f"figures: only {len(objects('s'))} of {PARTITIONS} partitions have a segment after 60 s")
            time.sleep(0.01)
        return (used() - before) // PARTITIONS


def flat(figures: dict[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in figures.items():
        found |= flat(value, f"{prefix}{name}: ") if isinstance(value, dict) else {prefix + name: value}
    return found


def main() -> int:
    write = "--write" in sys.argv[1:]
    figures = counted()
    if figures is None:
        print(f"figures: not counted here (ptrace is forbidden, or this is {platform.machine()} and not x86-64)")
        return 0
    figures["bytes in /dev/shm of an idle partition"] = idle_partition_bytes()
    gcc = compiler()
    if write:
        text = json.dumps({"gcc": gcc, "figures": figures}, indent=1)
        TABLE.write_text(re.sub(r"\{\s+(\"instructions\"[^}]*?)\s+\}", lambda m: "{" + re.sub(r"\s+", " ", m[1]) + "}", text) + "\n")
        print(f"figures: written to {TABLE.relative_to(ROOT)}")
        return 0
    table = json.loads(TABLE.read_text())
    now, then, grown = flat(figures), flat(table["figures"]), []
    for name in sorted(then.keys() | now.keys()):
        if name not in now or name not in then:
            grown.append(f"{name}: {'no longer counted' if name in then else 'not in the table'}")
        elif not name.endswith("instructions"):
            if now[name] > then[name]:
                grown.append(f"{name}: {now[name]:g}, was {then[name]:g}")
        elif gcc == table["gcc"] and now[name] > then[name] * GROWTH:
            grown.append(f"{name}: {now[name]:g}, was {then[name]:g} ({100 * (now[name] / then[name] - 1):+.1f} %)")
    for line in grown:
        print(f"figures: {line}")
    if grown:
        print("figures: if that is meant, `make figures` writes the new table; its diff is part of the change")
        return 1
    part = "" if gcc == table["gcc"] else f"; instructions not compared: gcc {gcc} here, {table['gcc']} in the table"
    a = figures["append"]
    print(f"figures: as in the table (an append: {a['instructions']:g} instructions, {a['locked_cas']:g} CAS, {a['locked_xchg']:g} xchg{part})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
