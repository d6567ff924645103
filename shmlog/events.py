"""What `Admin.watch(callback)` tells: a `State` first, then one event for each thing that is another than before, and `ClusterDown` last.

Plain frozen values, for `match` and isinstance(); `msgspec.json.encode(event)` gives an object with the class name as "type". `version` is that of the
metadata they were seen in: it never goes back, also when another coordinator takes over, and events of one look have the same one.

Topics have the names of the namespace that is watched.
"""

from __future__ import annotations

import msgspec

# --- the present state -------------------------------------------------------------------------------------------------


class Broker(msgspec.Struct, frozen=True):
    up: bool  # its process lives and has taken over its partitions
    broker_epoch: int  # grows with every start of this broker
    directory: str | None  # None: memory only


class Partition(msgspec.Struct, frozen=True):
    leader: int | None  # a broker's id; None: nobody leads at the moment
    leader_epoch: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]


class Topic(msgspec.Struct, frozen=True):
    topic_id: str  # a topic made anew under the same name is another one
    config: dict[str, str]  # what differs from the defaults
    partitions: tuple[Partition, ...]


class Event(msgspec.Struct, frozen=True, tag=True):
    version: int


class State(Event, frozen=True):
    """The first event: everything as it is when the watch begins. All others are changes to this."""

    cluster_id: str
    name: str
    coordinator_epoch: int
    config: dict[str, str]  # of the cluster, what differs from the defaults
    brokers: dict[int, Broker]
    topics: dict[str, Topic]


# --- changes, in the order in which those of one look are told ---------------------------------------------------------


class CoordinatorChanged(Event, frozen=True):
    """Another coordinator decides from now on."""

    coordinator_epoch: int


class ClusterConfigChanged(Event, frozen=True):
    config: dict[str, str]
    previous: dict[str, str]


class BrokerDown(Event, frozen=True):
    """The process that was up under this epoch is not any more."""

    broker_id: int
    broker_epoch: int


class BrokerRemoved(Event, frozen=True):
    broker_id: int


class BrokerAdded(Event, frozen=True):
    """The cluster has it now; it is up when BrokerUp comes."""

    broker_id: int
    directory: str | None


class BrokerUp(Event, frozen=True):
    broker_id: int
    broker_epoch: int


class TopicDeleted(Event, frozen=True):
    topic: str
    topic_id: str


class TopicCreated(Event, frozen=True):
    """With everything about it: its partitions get no events of their own."""

    topic: str
    topic_id: str
    config: dict[str, str]
    partitions: tuple[Partition, ...]


class TopicConfigChanged(Event, frozen=True):
    topic: str
    config: dict[str, str]
    previous: dict[str, str]


class PartitionsAdded(Event, frozen=True):
    """The topic has as many more, from number `first` on."""

    topic: str
    first: int
    partitions: tuple[Partition, ...]


class ReplicasChanged(Event, frozen=True):
    topic: str
    partition: int
    replicas: tuple[int, ...]
    previous: tuple[int, ...]


class LeaderChanged(Event, frozen=True):
    """Another broker leads, or the same one under another epoch (it was started anew)."""

    topic: str
    partition: int
    leader: int | None
    leader_epoch: int
    previous_leader: int | None
    previous_leader_epoch: int


class IsrChanged(Event, frozen=True):
    topic: str
    partition: int
    isr: tuple[int, ...]
    previous: tuple[int, ...]


class ClusterDown(Event, frozen=True):
    """The last event: the cluster was shut down (orderly), or all its coordinators are dead. What a resumed cluster changes is for another watch."""

    orderly: bool
    reason: str
