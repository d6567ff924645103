"""Fixtures of the fault tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_cluster import RealCluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RealCluster]:
    real = RealCluster(tmp_path / "data")
    real.up()
    yield real
    real.end()
    left = [name for name in os.listdir("/dev/shm") if real.name in name]
    assert not left, f"left in /dev/shm: {left}"
