"""The one import of ZeroMQ: sockets between brokers, over unix sockets in the cluster's run directory.

A leader's end has one socket for all its followers (ROUTER, which names who sent a message); a follower has one for each leader (DEALER). Nothing waits
in a queue without a bound: the protocol above (broker/replication.py) limits what is under way. Messages between two ends arrive whole and in order, or
not at all.
"""

from __future__ import annotations

import os

import zmq

Again, TransportError = zmq.Again, zmq.ZMQError
POLLIN, NOBLOCK = zmq.POLLIN, zmq.NOBLOCK
Poller = zmq.Poller
Socket = zmq.Socket[bytes]

RECONNECT_MS, RECONNECT_MAX_MS = 5, 200


class Transport:
    """Of one broker; used by one thread."""

    def __init__(self, run_dir: str, broker_id: int, broker_epoch: int) -> None:
        self.run_dir = run_dir
        self.identity = f"{broker_id}.{broker_epoch}".encode()
        for name in os.listdir(run_dir):
            if name.startswith(f"r{broker_id}-"):  # of this broker's earlier lives
                os.unlink(os.path.join(run_dir, name))
        self.context = zmq.Context()
        self.router: Socket = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.router.setsockopt(zmq.SNDHWM, 0)
        self.router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an error for a follower that is gone, not silence
        self.router.bind(self._endpoint(broker_id, broker_epoch))

    def _endpoint(self, broker_id: int, broker_epoch: int) -> str:
        """A new name for each life, so that nobody talks to a socket whose process is dead."""
        return f"ipc://{self.run_dir}/r{broker_id}-{broker_epoch}"

    def dealer(self, broker_id: int, broker_epoch: int) -> Socket:
        """Connects by itself as soon as that broker listens, and again."""
        socket: Socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IDENTITY, self.identity)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        socket.connect(self._endpoint(broker_id, broker_epoch))
        return socket

    def close(self) -> None:
        """After all dealers are closed."""
        self.router.close(0)
        self.context.term()


def follower_of(identity: bytes) -> int:
    """The broker id of whoever sent a message. ValueError: nobody of ours."""
    return int(identity.partition(b".")[0])
