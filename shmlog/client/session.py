"""What a handle (Producer, Consumer, Admin, a broker) has of its cluster: rows, metadata under its namespace's names, and requests.

attach() gives a Session; all Sessions of a process on one cluster share an attachment, a pool of rows and a connection to the coordinator, and the last
one closed gives them up. The coordinator is asked for rows and for changes of topics, and for nothing else: sending and polling need no request.

A request is repeated towards the next coordinator when one dies under it, until its deadline; messages that are not the same twice say that they are
repeated.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

import msgspec

from shmlog import clock, config, errors
from shmlog import messages as m
from shmlog._ffi import lib
from shmlog.client.cluster_view import Attachment, alive, lifeless

REQUEST_TIMEOUT_S = 30.0
ROWS_AT_ONCE = 4
RETRY_S = 0.002  # a standby takes over in milliseconds
RETRY_MAX_S = 0.05

_links: dict[str, _Link] = {}
_links_lock = threading.RLock()  # reentrant, like rows_lock: the garbage collector may end a handle while its thread holds one


def _after_fork_in_child() -> None:
    # The parent's attachments, rows and connection are not ours; a lock may be held by a thread that is not here.
    global _links_lock
    _links.clear()
    _links_lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)


class _Link(Attachment):
    """The shared part: an attachment with rows and a connection."""

    def __init__(self, name: str, starting: bool) -> None:
        self.rows: dict[int, list[int]] = {}  # kind -> registered rows that no handle uses
        self.registered: set[int] = set()
        self.rows_lock = threading.RLock()
        self.request_lock = threading.Lock()
        self.requester = 0  # the thread that holds it
        self.sock: socket.socket | None = None
        super().__init__(name, starting)

    # --- rows ---

    def take_row(self, kind: int) -> int:
        with self.rows_lock:
            pool = self.rows.setdefault(kind, [])
            if not pool:
                # For the first one exactly what is asked: most processes need one. Then in blocks.
                wanted = ROWS_AT_ONCE if self.registered else 1
                reply = self.request(m.Register(kind, wanted), REQUEST_TIMEOUT_S)
                self.registered.update(reply.rows)
                pool.extend(reversed(reply.rows))
            return pool.pop()

    def give_row(self, row: int, kind: int) -> None:
        if self.pid != os.getpid():
            return  # see Session.forked()
        with self.rows_lock:
            if row in self.registered:
                self.rows.setdefault(kind, []).append(row)

    # --- requests ---

    def request(self, message: Any, timeout: float) -> Any:
        deadline = time.monotonic() + timeout
        pause = RETRY_S
        while True:
            sent = False
            try:
                if self.requester == threading.get_ident():
                    # A signal handler or a finalizer in the middle of a request of this very thread: it may not wait for itself, nor take the
                    # other's reply.
                    with self._connect(deadline) as sock:
                        sent = True
                        m.send(sock, message, deadline)
                        reply = m.receive(sock, deadline)
                else:
                    with self.request_lock:
                        try:
                            self.requester = threading.get_ident()
                            if self.sock is None:
                                self.sock = self._connect(deadline)
                            sent = True
                            m.send(self.sock, message, deadline)
                            reply = m.receive(self.sock, deadline)
                        except BaseException:
                            # Also for KeyboardInterrupt: a late reply must not be taken for the next request's.
                            if self.sock is not None:
                                self.sock.close()
                                self.sock = None
                            raise
                        finally:
                            self.requester = 0
            except TimeoutError:
                raise errors.KafkaTimeoutError(
                    f"the coordinator of cluster {self.name} has not answered a {type(message).__name__} within {timeout:g} s", timeout=timeout
                ) from None
            except (OSError, ValueError) as exc:
                if self.control.cluster_state == lib.SL_CLUSTER_DOWN:
                    if isinstance(message, m.Shutdown):
                        return m.Done()  # it was the last thing that coordinator did
                    raise errors.ClosedError(f"cluster {self.name} was shut down") from None
                if not alive(self.control):
                    raise errors.BrokerNotRunningError(
                        f"no process of cluster {self.name} lives any more ({exc})", hint="what was appended is kept: `shmlog up` resumes with it"
                    ) from None
                if time.monotonic() + pause > deadline:
                    raise errors.KafkaTimeoutError(
                        f"no coordinator of cluster {self.name} took the request within {timeout:g} s", timeout=timeout
                    ) from exc
                if sent and hasattr(message, "repeated"):
                    message = msgspec.structs.replace(message, repeated=True)
                time.sleep(pause)
                pause = min(2 * pause, RETRY_MAX_S)
                continue
            if isinstance(reply, m.Failure):
                m.raise_failure(reply)
            return reply

    def _connect(self, deadline: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            sock.connect(os.path.join(self.run_dir, "coordinator.sock"))
        except BaseException:
            sock.close()
            raise
        return sock

    def end(self) -> None:
        if self.pid != os.getpid():
            return  # the parent's
        try:
            if self.registered and self.control.cluster_state != lib.SL_CLUSTER_DOWN and alive(self.control):
                self.request(m.Unregister(tuple(sorted(self.registered))), 2.0)
        except errors.ShmlogError:
            pass  # the coordinator gives them out again when this process ends
        finally:
            if self.sock is not None:
                self.sock.close()
                self.sock = None
            self.close()


class Session:
    """One handle's use of a cluster, and of a namespace in it. Thread-safe."""

    PRODUCER = m.KIND_PRODUCER
    CONSUMER = m.KIND_CONSUMER
    TOOL = m.KIND_TOOL

    def __init__(self, link: _Link, address: config.Address) -> None:
        self._link = link
        self._closed = False
        self._kinds: dict[int, int] = {}
        self.address = address
        self.name = link.name
        self.prefix = link.prefix
        self.run_dir = link.run_dir
        self.cluster = link.handle  # sl_cluster *
        self.control = link.control  # sl_control *
        self.version_word = link.version_word  # uint64_t *: [0] is the version of the view in force

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def keep(self) -> Session:
        """Another count: for what outlives the handle (loans, leases)."""
        with _links_lock:
            self._check()
            self._link.users += 1
        return Session(self._link, self.address)

    def close(self) -> None:
        """Gives up this use; the last one gives back the rows and unmaps."""
        if self.forked():
            return
        with _links_lock:
            if self._closed:
                return
            self._closed = True
            link = self._link
            link.users -= 1
            if link.users:
                return
            if _links.get(link.name) is link:
                del _links[link.name]
        link.end()

    def forked(self) -> bool:
        """Whether this is a child of who opened it. For finalizers: they may run inside os.fork(), before handle.generation has grown, and a lock that
        another thread held then is never released."""
        return self._link.pid != os.getpid()

    def _check(self) -> None:
        if self._link.pid != os.getpid():
            raise errors.ForkedProcessError(f"this handle was opened before a fork and belongs to process {self._link.pid}")
        if self._closed:
            raise errors.ClosedError("this handle is closed")

    def check(self) -> None:
        """ForkedProcessError, ClosedError, or BrokerNotRunningError if nobody keeps the cluster going."""
        self._check()
        if self.control.cluster_state == lib.SL_CLUSTER_DOWN:
            raise errors.ClosedError(f"cluster {self.name} was shut down")
        if not self.alive():
            raise errors.BrokerNotRunningError(
                f"no process of cluster {self.name} lives any more", hint="what was appended is kept: `shmlog up` resumes with it"
            )

    def alive(self) -> bool:
        return alive(self.control)

    # --- rows ---

    def take_row(self, kind: int) -> int:
        """A row for one thread (producer) or handle (consumer)."""
        self._check()
        row = self._link.take_row(kind)
        self._kinds[row] = kind
        return row

    def give_row(self, row: int) -> None:
        """The row's words are clear and nobody uses it any more."""
        self._link.give_row(row, self._kinds.pop(row, m.KIND_TOOL))

    # --- metadata, by the names of the namespace ---

    @property
    def view(self) -> m.LazyClusterView:
        self._check()
        return self._link.view()

    def topic(self, name: str) -> m.TopicView | None:
        self._check()
        if not isinstance(name, str) or "/" in name:  # internal names have one: it would lead into another namespace
            return None
        return self._link.topic(m.internal_name(self.address.namespace, name))

    def topics(self) -> list[str]:
        """Names of the topics in this namespace, sorted."""
        names = self.view.topics
        start = self.address.namespace + "/" if self.address.namespace else ""
        if start:
            return sorted(name[len(start) :] for name in names if name.startswith(start))
        return sorted(name for name in names if "/" not in name)

    @property
    def has_disk(self) -> bool:
        return bool(self.view.data_dirs)

    def partition_directory(self, topic: str, partition: int) -> str | None:
        """Where the leader keeps the partition's files; None: in memory only."""
        found = self.topic(topic)
        if found is None or not 0 <= partition < len(found.partitions):
            return None
        broker = self.view.brokers.get(found.partitions[partition].leader)
        if broker is None or not broker.directory or not config.topic_config(found.config).shmlog_spill:
            return None
        return m.partition_directory(broker.directory, found.name, partition, found.topic_id)

    def wait_view(self, version: int, deadline_ns: int) -> bool:
        """Waits until a view later than `version` is in force."""
        self._check()
        return self._link.wait_view(version, deadline_ns)

    # --- requests ---

    def request(self, message: Any, timeout: float = REQUEST_TIMEOUT_S) -> Any:
        """Sends it to the coordinator and returns its reply; a Failure is raised as the exception that it carries."""
        self._check()
        return self._link.request(message, timeout)

    def create_topic(self, name: str, deadline_ns: int) -> m.TopicView:
        """What producing to an unknown topic does."""
        internal = m.internal_name(self.address.namespace, config.topic_name(name))
        if not config.cluster_config(self.view.config).auto_create_topics_enable:
            raise errors.UnknownTopicOrPartitionError(
                f"there is no topic {name!r}, and auto.create.topics.enable is false", topic=name, hint=f"`shmlog topic create {name}`"
            )
        spec = m.TopicSpec(internal, os.urandom(16))
        reply = self.request(m.CreateTopics((spec,)), max(0.001, clock.left(deadline_ns)))
        failure = reply.failures[0]
        if failure is not None and failure.name != errors.TopicAlreadyExistsError.__name__:  # another producer was quicker
            m.raise_failure(failure)
        topic = self._link.topic(internal)
        if topic is None:
            raise errors.UnknownTopicOrPartitionError(f"topic {name!r} was deleted as soon as it was made", topic=name)
        return topic


def attach(address: str | list[str] | config.Address | None = None, *, starting: bool = False) -> Session:
    """A Session on the cluster of this address. NoBrokersAvailable at once if it does not run. starting: even if it is not up yet (its brokers)."""
    if not isinstance(address, config.Address):
        address = config.parse_address(address)
    with _links_lock:
        link = _links.get(address.cluster)
        if link is not None:
            link.users += 1  # before anything that may collect garbage: a handle that ends with it could be the link's last
            session = Session(link, address)
            try:
                if link.current():
                    if not alive(link.control):
                        raise lifeless(address.cluster)
                    return session
            except BaseException:
                session.close()
                raise
            session.close()  # an older link, of a cluster that is gone, ends with its last handle
        link = _Link(address.cluster, starting)
        link.users = 1
        _links[address.cluster] = link
    return Session(link, address)
