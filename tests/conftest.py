"""Options of our own test run; fixtures that need a cluster come from the plugin shmlog.testing."""

from __future__ import annotations

import signal
import zlib

import hypothesis
import pytest

# No deadline: a machine with other work must not fail a test of correctness. The blob repeats a failure elsewhere.
hypothesis.settings.register_profile("shmlog", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shmlog")

# A run in the background of a script, or under nohup, inherits these as ignored, and a child inherits that from us: Ctrl-C would reach nobody.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", metavar="K/N", help="run only part K of N (by test name, so that a test keeps its part)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    shard = config.getoption("--shard")
    if not shard:
        return
    k, _, n = shard.partition("/")
    if not (k.isdigit() and n.isdigit() and 1 <= int(k) <= int(n)):
        raise pytest.UsageError(f"--shard {shard}: K/N with 1 <= K <= N")
    part = [zlib.crc32(item.nodeid.encode()) % int(n) == int(k) - 1 for item in items]
    config.hook.pytest_deselected(items=[item for item, mine in zip(items, part, strict=True) if not mine])
    items[:] = [item for item, mine in zip(items, part, strict=True) if mine]
