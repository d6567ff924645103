"""Adapters: how each candidate sends and receives bytes. All of them: ours, floors, libraries, brokers, stores, Java.

An adapter of your own is a subclass of Peer, given as `shmlog bench --adapter module:Class`:

    class Mine(Peer):
        name, needs = "mine", ("my_queue",)                 # modules that must be there, else the peer is left out, and said so
        can = frozenset({"latency", "rate"})
        def start(self):                                    # in the harness, before the ends: servers, shared names. Attributes travel to the ends
            self.path = f"{self.memory_directory}/queue"    # (pickled) unless their name begins with _
        def sender(self, channel):                          # in a process of its own: an object with send(value)
            return MySender(f"{self.path}.{channel}")
        def receiver(self, channels):                       # an object with receive() -> bytes, which waits as self.task.wait says
            return MyReceiver(f"{self.path}.{channels[0]}")

`can` says what it takes part in: latency (one in flight), rate (one a call, lossless or counted), batch (send_many, receive_many), paced (open
loop, both waits), blocking (it can sleep), large (values of megabytes), loan (memory of its own written and read in place), producers (many on a
channel), partitions (a receiver of many channels), durable (flush() returns when it is on the disk).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from .base import Peer, Receiver, Sender, Task, program
from .brokers import Kafka, KafkaFlush, Nats, Redis, RedisAlways
from .floors import BareMemory, FastRing, Ring
from .jvm import Aeron, Chronicle
from .libraries import Cloudtoid, FasterFifo, Iceoryx2, Kickmsg, Pipe, Queue, Zmq
from .ours import Shmlog, ShmlogCffi, ShmlogDisk, ShmlogMemory, ShmlogMemoryViews, ShmlogViews
from .stores import Lmdb, Sqlite

__all__ = ["PEERS", "Candidates", "Peer", "Receiver", "Sender", "Shmlog", "ShmlogDisk", "Task", "adapter", "chosen", "program"]

PEERS: list[type[Peer]] = [
    Shmlog, ShmlogCffi, ShmlogViews, ShmlogMemory, ShmlogMemoryViews, ShmlogDisk, FastRing, Ring, BareMemory, Cloudtoid, Kickmsg, Iceoryx2,
    FasterFifo, Pipe, Queue, Zmq, Redis, RedisAlways, Nats, Kafka, KafkaFlush, Sqlite, Lmdb,
    Aeron, Chronicle,
]  # fmt: skip


def adapter(text: str) -> type[Peer]:
    """module:Class"""
    module, _, name = text.partition(":")
    found = getattr(importlib.import_module(module), name or "", None)
    if not (isinstance(found, type) and issubclass(found, Peer)):
        raise ValueError(f"--adapter {text}: not a subclass of {__name__}.Peer")
    return found


def chosen(names: Sequence[str], adapters: Sequence[type[Peer]]) -> tuple[list[type[Peer]], dict[str, str]]:
    """(peers that can take part, {name: why not}). `names`: parts of names; none chooses all."""
    here, absent = [], {}
    for peer in [*PEERS, *adapters]:
        if names and peer not in adapters and not any(n.lower() in peer.name.lower() for n in names):
            continue
        if (why := peer.missing()) is not None:
            absent[peer.name] = why
        else:
            here.append(peer)
    return here, absent


Candidates = Callable[[str], list[type[Peer]]]
