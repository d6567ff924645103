"""What a cluster leaves to those who still hold a handle on it: an error, never a false acknowledgement."""

from __future__ import annotations

import os
import signal

import pytest

from shmlog import Cluster, Producer, errors, lifecycle


def test_a_producer_that_outlives_its_embedded_cluster_gets_an_error_and_no_acknowledgement() -> None:
    with Cluster() as cluster:
        producer = Producer(bootstrap_servers=cluster.address)
        producer.send("t", b"kept")
    with pytest.raises((errors.ClosedError, errors.BrokerNotRunningError)):
        producer.send("t", b"nobody would ever read this")
    producer.close()


def test_a_producer_of_a_cluster_that_was_killed_and_swept_away_gets_an_error() -> None:
    cluster = Cluster()
    producer = Producer(bootstrap_servers=cluster.address)
    producer.send("t", b"kept for now")
    for role in ("spare", "standby", "coordinator", "broker"):
        os.kill(cluster.pid(role), signal.SIGKILL)
    lifecycle.discard(cluster.name)
    with pytest.raises((errors.ClosedError, errors.BrokerNotRunningError)):
        producer.send("t", b"nobody would ever read this")
    producer.close()
    cluster.stop()
