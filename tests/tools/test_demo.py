"""`make demo`, as a person runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.mark.slow
def test_the_demo_agrees_with_itself_and_leaves_nothing() -> None:
    found = subprocess.run([sys.executable, str(DEMO)], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("the totals agree exactly") == 2 and "killed with SIGKILL at record" in found.stdout
    assert "p50" in found.stdout and "left behind: nothing" in found.stdout and found.stderr == ""
