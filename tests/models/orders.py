#!/usr/bin/env python3
"""Runs the memory orders in loom/ (Rust), where cargo is: says "not checked here" where it is missing, too old, or cannot fetch the crates."""
import pathlib
import re
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
TARGET = HERE.parent.parent / "build" / "loom"
NEEDED = (1, 73)                    # what loom asks for
FETCH_S = 300


def not_checked(why):
    print(f"memory orders: not checked here ({why})")
    return 0


def main():
    cargo = shutil.which("cargo")
    if not cargo:
        return not_checked("no cargo")
    said = subprocess.run([cargo, "--version"], capture_output=True, text=True, check=False)
    found = re.match(r"cargo (\d+)\.(\d+)", said.stdout)
    if not found:
        return not_checked("cargo does not say its version: " + (said.stderr.strip().splitlines() or ["no output"])[-1])
    version = tuple(map(int, found.groups()))
    if version < NEEDED:
        return not_checked(f"cargo {version[0]}.{version[1]} is older than {NEEDED[0]}.{NEEDED[1]}")
    where = ["--locked", "--manifest-path", str(HERE / "loom" / "Cargo.toml"), "--target-dir", str(TARGET)]
    if subprocess.run([cargo, "fetch", "--offline", *where[:3]], capture_output=True, check=False).returncode:
        try:
            fetched = subprocess.run([cargo, "fetch", *where[:3]], capture_output=True, text=True, check=False, timeout=FETCH_S)
        except subprocess.TimeoutExpired:
            return not_checked(f"the crates did not come in {FETCH_S} s")
        if fetched.returncode:
            return not_checked("the crates cannot be fetched: " + (fetched.stderr.strip().splitlines() or ["no output"])[-1].strip())
    made = subprocess.run([cargo, "build", "--quiet", *where], check=False)
    if made.returncode:
        return made.returncode
    print("memory orders, under loom: what C has holds, each order weakened is caught or argued in tests/models/ORDERS.md", flush=True)
    return subprocess.run([str(TARGET / "debug" / "orders")], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
