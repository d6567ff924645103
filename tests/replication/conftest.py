"""Three brokers, really killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmlog import Admin, Cluster
from shmlog.broker import recovery
from shmlog.testing.waiting import until

DEADLINE_S = 60.0  # turns a hang into a failure; what is waited for takes milliseconds


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(brokers=3, data_dir=str(tmp_path / "data"), config={"replica.lag.time.max.ms": 1000}) as made:
        yield made


class Partition:
    """One partition, looked at from outside."""

    def __init__(self, cluster: Cluster, topic: str, number: int = 0) -> None:
        self.cluster, self.topic, self.number = cluster, topic, number

    @property
    def seen(self) -> dict[str, Any]:
        with Admin(bootstrap_servers=self.cluster.address) as admin:
            return admin.describe_topics([self.topic])[0]["partitions"][self.number]  # type: ignore[no-any-return]

    @property
    def leader(self) -> int:
        return int(self.seen["leader"])

    def wait_isr(self, count: int) -> dict[str, Any]:
        return until(lambda: len((seen := self.seen)["isr"]) == count and seen, f"{count} in-sync replicas of {self.topic}-{self.number}")  # type: ignore[no-any-return]

    def directory(self, broker: int) -> Path:
        found = list(Path(self.cluster.data_dir).glob(f"broker-{broker}/{self.topic}-{self.number}-*"))
        assert len(found) == 1, found
        return found[0]

    def file_end(self, broker: int) -> int:
        files = recovery.list_files(str(self.directory(broker)))
        return int(recovery.inspect(str(self.directory(broker)), files[-1].name).end_offset) if files else 0  # type: ignore[attr-defined]
