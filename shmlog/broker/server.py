"""A broker process: takes over the partitions that the cluster view gives it, and decides about their files.

One thread of Python, which never sees a record: it recovers files, adds partitions to the C threads (csrc/spill.c), follows changes of the
view, lets old files go, trims, and reports to the coordinator; a second one, _Scribe, waits for the disk in its place. Spilling, syncing and the care
for memory go on without them, so nothing here is urgent, and the C threads go on while the coordinator is away.

What stands when this process is killed between any two steps: a partition that is half taken over is taken over by the next broker under the
next leader epoch (sl_log_open_epoch is restartable); a log start that was raised but not written down is written down at the next trim, or was
never answered; files that should have gone are found below the log start again; a topic's directory that is half removed bears another name
and is removed at the next start.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from shmlog import config, directories, shm
from shmlog import messages as m
from shmlog._ffi import check, ffi, lib, raise_code
from shmlog.broker import factor, recovery, retention
from shmlog.clock import MS, NS, monotonic_ns, wall_ns
from shmlog.errors import (
    IllegalStateError,
    OffsetOutOfRangeError,
    ShmlogError,
    ShmSpaceError,
    StorageError,
    StorageFullError,
    UnknownTopicOrPartitionError,
)

if TYPE_CHECKING:
    from shmlog.broker.replication import Replication, Role

HEARTBEAT_NS = 250 * MS
SWEEP_NS = 1 * NS  # retention looks at every partition this often ...
SWEEP_PER_PARTITION_NS = 1 * MS  # ... unless there are so many that looking would cost more than a small part of a core
LOCK_TIMEOUT_NS = 10 * NS  # a predecessor that is being killed may hold the directory for a moment
CONNECT_TIMEOUT_S = 10.0
RETRY_NS = 200 * MS
DRAIN_SLICE_NS = 200 * MS
GIVE_UP_NS = 3 * NS  # orderly stop without force: a disk that refuses for this long is not waited for
GIB = 2**30
LIMIT_FILES = 16  # of so many files at least what data.max.bytes allows is made
OFFSET_MASK = 2**48 - 1
NUMBER_MASK = 2**40 - 1
ALL_BLOCKS = 2**32 - 1
STATES = {
    lib.SL_STORAGE_OK: "ok",
    lib.SL_STORAGE_SHM_FULL: "shared memory is full",
    lib.SL_STORAGE_DISK_FULL: "the disk is full",
    lib.SL_STORAGE_DISK_ERROR: "the disk failed",
    lib.SL_STORAGE_BEHIND: "the disk is behind",
}


def log(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} broker {os.getpid()}: {text}", file=sys.stderr, flush=True)


class Partition:
    """A partition that this broker leads."""

    def __init__(self, topic: m.TopicView, number: int, view: m.PartitionView, directory: str) -> None:
        self.topic_id = topic.topic_id
        self.topic = topic.name
        self.number = number
        self.block = view.block
        self.leader_epoch = view.leader_epoch
        self.directory = directory  # "": memory only
        self.replicated = len(view.replicas) > 1
        self.config_strings = topic.config
        self.config = config.topic_config(topic.config)
        self.policy = retention.policy(self.config)
        self.words: Any = None
        self.files: list[retention.FileFacts] = []  # closed ones
        self.written_end = 0  # of the files, when they were taken over
        self.written_down = 0  # log start as it stands in the checkpoint
        self.witness = 0  # the offset up to which the second witness says that all was durable, and when it was written
        self.witness_ns = 0
        self.writing_down: Future[None] | None = None  # the last of what _Scribe has to do for it
        self.seen_end = -1  # end of what was spilled, when we last looked, and when that was
        self.appended_ns = 0

    def __str__(self) -> str:
        return f"{self.topic}-{self.number}"

    def offset(self, word: str) -> int:
        return int(lib.sl_get64(ffi.addressof(self.words, word))) & OFFSET_MASK

    def active_file(self) -> str:
        return f"{self.words.file_base_offset:020d}-{self.words.file_leader_epoch}.log"


class _Scribe:
    """A thread for what waits for the disk: writing a log start down (an fsync waits for all that the file system has to write, data included that goes
    away) and removing files. In the order it was asked for; what came of it is taken up by the broker's own thread, woken through `wake_fd`."""

    def __init__(self, wake_fd: int) -> None:
        self._wake_fd = wake_fd
        self._pool = ThreadPoolExecutor(1, "scribe")
        self._done: deque[tuple[Future[None], Callable[[OSError | ShmlogError | None], None]]] = deque()

    def ask(self, job: Callable[[], None], then: Callable[[OSError | ShmlogError | None], None]) -> Future[None]:
        future = self._pool.submit(job)
        future.add_done_callback(lambda f: self._finished(f, then))
        return future

    def _finished(self, future: Future[None], then: Callable[[OSError | ShmlogError | None], None]) -> None:
        self._done.append((future, then))
        try:
            os.write(self._wake_fd, b"s")
        except BlockingIOError:
            pass  # it is full: the broker wakes anyway

    def take_up(self) -> None:
        while self._done:
            future, then = self._done.popleft()
            error = future.exception()
            if error is not None and not isinstance(error, (OSError, ShmlogError)):
                raise error
            then(error)


class Broker:
    def __init__(self, start: m.BrokerStart) -> None:
        self.start = start
        self.prefix = shm.prefix(start.cluster)
        self.cluster = ffi.NULL
        self.handle = ffi.NULL  # sl_broker
        self.control: Any = None
        self.process: Any = None
        self.row = -1  # ours; the spill thread has another
        self.view: m.ClusterView | None = None
        self.epochs: directories.EpochsFile | None = None  # as written; None: not yet
        self.partitions: dict[int, Partition] = {}  # by block
        self.failed: dict[int, tuple[int, str]] = {}  # block -> when to try again, why it failed
        self.connection: socket.socket | None = None
        self.unframer = m.Unframer()
        self.connect_at_ns = 0
        self.stop_asked = False  # SIGTERM
        self.scribe: _Scribe | None = None
        self.clock = retention.Clock(wall_ns(), monotonic_ns())
        self.sweep_at_ns = 0
        self.reserve_bytes = -1
        self.guard_full = False
        self.poll = select.poll()
        self.replication: Replication | None = None  # made for the first replicated partition: a cluster without any has no ZeroMQ
        self.roles: dict[int, Role] = {}  # of replicated partitions, as the replication thread was told last
        self.handed_over: dict[int, tuple[bytes, int]] = {}  # block -> topic id and end of files that this broker followed with until now
        self.isr_changes: deque[m.IsrChange] = deque()  # from the replication thread, for the coordinator
        self.isr_wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    # === life ==========================================================================================================

    def run(self) -> int:
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.scribe = _Scribe(wake_write)
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at an embedded cluster is its owner's business
        out = ffi.new("sl_cluster **")
        check(lib.sl_cluster_open(self.prefix.encode(), out), f"{self.prefix} cannot be attached to")
        self.cluster = out[0]
        self.control = lib.sl_cluster_control(self.cluster)
        self.process = self.control.processes[self.start.process]
        self._beat()
        try:
            self._lock_directory()
        except ShmlogError as exc:
            self._report_failure(exc)
            return 1
        self._connect(CONNECT_TIMEOUT_S)
        rows = self._register_rows(2)
        self.row = rows[0]
        options = ffi.new("sl_broker_options *")
        options.process = self.start.process
        options.spill_row = rows[1]
        options.broker_epoch = self.start.broker_epoch & 0xFFFFFFFF
        options.memory_max_bytes = self.control.memory_max_bytes
        options.reserve_disk_bytes = self._reserve()
        self.reserve_bytes = options.reserve_disk_bytes
        handle = ffi.new("sl_broker **")
        check(lib.sl_broker_start(self.cluster, options, handle), "the C threads cannot be started")
        self.handle = handle[0]
        self._remove_remains()
        self._apply_view(self._read_view())
        self._send_ready()
        gc.collect()
        gc.freeze()
        self.poll.register(wake_read, select.POLLIN)
        self.poll.register(lib.sl_broker_eventfd(self.handle), select.POLLIN)
        self.poll.register(self.isr_wake, select.POLLIN)
        while True:
            now = monotonic_ns()
            wait_ns = min(HEARTBEAT_NS, max(0, self.sweep_at_ns - now))
            for fd, _ in self.poll.poll(wait_ns / MS):
                if fd == wake_read:
                    self._drain_pipe(wake_read)
                elif fd == self.isr_wake:
                    self._ask_for_isr_changes()
                elif self.connection is not None and fd == self.connection.fileno():
                    self._receive()
            self._beat()
            self.scribe.take_up()
            self._take_events()
            if self.stop_asked:
                self.stop_asked = False
                self._stop(m.BrokerStop())
            self._check_cluster()
            self._sweep()
            if self.connection is None and monotonic_ns() >= self.connect_at_ns:
                self._reconnect()

    def _terminate(self, number: int, frame: Any) -> None:
        self.stop_asked = True

    @staticmethod
    def _drain_pipe(fd: int) -> None:
        try:
            while os.read(fd, 4096):
                pass
        except BlockingIOError:
            pass

    def _beat(self) -> None:
        lib.sl_put64(ffi.addressof(self.process, "heartbeat_ns"), monotonic_ns())

    def _check_cluster(self) -> None:
        """Ends this process when it is no longer the broker it was started as. No clean-up: a successor adopts everything."""
        if self.control.cluster_state == lib.SL_CLUSTER_DOWN:
            self._exit(0, "the cluster is down")
        if self.process.broker_epoch != self.start.broker_epoch:
            self._exit(1, f"another process is broker {self.start.broker_id} now")

    def _exit(self, code: int, why: str) -> NoReturn:
        log(f"ends: {why}")
        sys.stderr.flush()
        os._exit(code)  # threads may be inside a disk that hangs

    # === directory =====================================================================================================

    def _lock_directory(self) -> None:
        """One broker at a time writes a directory, and it is this cluster's."""
        directory = self.start.directory
        if not directory:
            return
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            self.lock_fd = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            until = monotonic_ns() + LOCK_TIMEOUT_NS
            while True:
                try:
                    fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if monotonic_ns() > until:
                        raise StorageError(f"{directory} is locked by another process", path=directory, hint="is a second cluster using it?") from None
                    time.sleep(0.02)
                    self._beat()
            owner = bytes(ffi.buffer(self.control.header.cluster_id)).hex()
            found = os.pread(self.lock_fd, 64, 0).decode("ascii", "replace").strip()
            if found and found != owner:
                raise StorageError(
                    f"{directory} holds the data of another cluster ({found})", path=directory, hint="name another directory with --data"
                )
            if not found:
                os.pwrite(self.lock_fd, owner.encode() + b"\n", 0)
                os.fsync(self.lock_fd)
            directories.mark_in_use(directory)
        except OSError as exc:
            if isinstance(exc, ShmlogError):
                raise
            kind = StorageFullError if exc.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
            raise kind(f"{directory}: {exc.strerror}", path=directory) from exc

    def _remove_remains(self) -> None:
        """Directories of deleted topics whose removal a predecessor did not finish."""
        if not self.start.directory:
            return
        for name in os.listdir(self.start.directory):
            if name.endswith(".deleted"):
                shutil.rmtree(os.path.join(self.start.directory, name), ignore_errors=True)

    def _remove_directory(self, directory: str) -> None:
        if not directory or not os.path.isdir(directory):
            return
        # Under another name first: a half-removed one must never be taken for a partition.
        gone = f"{directory}.{time.time_ns()}.deleted"
        try:
            os.rename(directory, gone)
        except OSError as exc:
            log(f"{directory} cannot be removed: {exc}")
            return
        shutil.rmtree(gone, ignore_errors=True)

    # === the coordinator ===============================================================================================

    def _connect(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        path = os.path.join(config.run_dir(self.start.cluster), "coordinator.sock")
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(1.0)
            try:
                sock.connect(path)
                break
            except OSError as exc:
                sock.close()
                if time.monotonic() > deadline:
                    raise ConnectionError(f"no coordinator behind {path}: {exc}") from None
                time.sleep(0.02)
                self._beat()
        self.connection = sock
        self.unframer = m.Unframer()
        self.poll.register(sock, select.POLLIN)

    def _disconnect(self) -> None:
        if self.connection is not None:
            self.poll.unregister(self.connection)
            self.connection.close()
            self.connection = None
        self.connect_at_ns = monotonic_ns() + RETRY_NS

    def _reconnect(self) -> None:
        try:
            self._connect(0.0)
            self._send_ready()
        except OSError:
            self._disconnect()  # between two coordinators; everything else goes on
            if shm.identity(shm.object_name(self.prefix, "control")) is None:
                self._exit(1, "the cluster was discarded")

    def _send(self, message: Any) -> None:
        if self.connection is None:
            return
        try:
            m.send(self.connection, message, time.monotonic() + 5.0)
        except OSError as exc:
            log(f"the coordinator does not take {type(message).__name__}: {exc!r}")
            self._disconnect()

    def _register_rows(self, count: int) -> tuple[int, ...]:
        assert self.connection is not None
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        m.send(self.connection, m.Register(m.KIND_BROKER, count), deadline)
        while True:
            answer = m.receive(self.connection, deadline)
            if isinstance(answer, m.Registered):
                return answer.rows
            if isinstance(answer, m.Failure):
                m.raise_failure(answer)

    def _send_ready(self) -> None:
        assert self.view is not None
        self._send(m.BrokerReady(self.start.broker_id, self.start.broker_epoch, self.view.version, tuple(self._reports(self.view))))

    def _report_failure(self, exc: ShmlogError) -> None:
        log(f"cannot start: {exc}")
        try:
            self._connect(2.0)
            assert self.connection is not None
            m.send(self.connection, m.BrokerFailed(self.start.broker_id, self.start.broker_epoch, m.failure_of(exc)), time.monotonic() + 2.0)
            m.receive(self.connection, time.monotonic() + 2.0)
        except (OSError, ValueError):
            pass

    def _receive(self) -> None:
        assert self.connection is not None
        try:
            self.connection.setblocking(False)
            data = self.connection.recv(65536)
            received = self.unframer.feed(data) if data else None
        except BlockingIOError:
            return
        except (OSError, ValueError) as exc:
            log(f"lost the coordinator: {exc!r}")
            received = None
        if received is None:
            self._disconnect()
            return
        for message in received:
            self._handle(message)

    def _handle(self, message: Any) -> None:
        if isinstance(message, m.ViewChanged):
            if self.view is None or message.view_version > self.view.version:
                self._apply_view(self._read_view())
        elif isinstance(message, m.Trim):
            try:
                self._trim(message)
            except (ShmlogError, OSError) as exc:
                self._send(m.Trimmed(message.request, failure=m.failure_of(exc)))
        elif isinstance(message, m.BrokerStop):
            self._stop(message)
        elif isinstance(message, m.Failure):
            if message.name == IllegalStateError.__name__:
                self._exit(1, message.message)
            log(f"the coordinator refused: {message.message}")

    # === the view ======================================================================================================

    def _read_view(self) -> m.ClusterView:
        for _ in range(1000):
            payload = shm.read_view(self.prefix, int(lib.sl_get64(ffi.addressof(self.control, "view_version"))))
            if payload is not None:
                return m.decode_view(payload)
            time.sleep(0.001)  # it was replaced between the two reads
        raise IllegalStateError("the cluster view cannot be read")

    def _apply_view(self, view: m.ClusterView) -> None:
        self.view = view
        roles = self._roles(view)
        if self.replication is not None or roles:
            self._replicate(view, roles)
        wanted: dict[int, tuple[m.TopicView, int, m.PartitionView]] = {
            p.block: (topic, number, p)
            for topic in view.topics.values()
            for number, p in enumerate(topic.partitions)
            if p.leader == self.start.broker_id
        }
        self._write_epochs(view, max((p.leader_epoch for _, _, p in wanted.values()), default=0))
        removed, dropped = [], []
        for gone in view.deleting:
            if gone.leader == self.start.broker_id:
                self._remove(gone)
                removed.append((gone.block, gone.topic_id))
            elif self.start.broker_id in gone.followers:
                self._remove_directory(m.partition_directory(self.start.directory, gone.topic, gone.partition, gone.topic_id))
                removed.append((gone.block, gone.topic_id))
        for block, partition in list(self.partitions.items()):
            if block not in wanted or wanted[block][0].topic_id != partition.topic_id:
                self._release(partition)
        for block, (topic, number, p) in wanted.items():
            held = self.partitions.get(block)
            if held is not None and held.leader_epoch == p.leader_epoch:
                if block in roles and self.roles.get(block) != roles[block]:
                    self._lead(roles[block], 0)  # another ISR
                if held.config_strings is not topic.config and held.config_strings != topic.config:
                    self._configure(held, topic)
                continue
            if held is not None:  # fenced for a stop that did not come: opened anew
                self._release(held)
            self._take_over(topic, number, p)
        self.handed_over.clear()
        for role in roles.values():
            if role.leader not in (self.start.broker_id, m.NO_LEADER) and self.roles.get(role.block) != role:
                assert self.replication is not None
                if role.block not in self.roles:
                    self._write_topic(role.directory, view.topics[role.topic])
                self.replication.follow(role)
                self.roles[role.block] = role
        for left in view.dropped:
            if left.broker == self.start.broker_id and left.may_go:
                self._remove_directory(m.partition_directory(self.start.directory, left.topic, left.partition, left.topic_id))
                dropped.append((left.block, left.topic_id))
        self._send_applied(view.version, removed, dropped)

    # --- replicas ---

    def _roles(self, view: m.ClusterView) -> dict[int, Role]:
        """The replicated partitions in which this broker has a part."""
        if not any(len(p.replicas) > 1 for topic in view.topics.values() for p in topic.partitions):
            return {}
        from shmlog.broker.replication import Role

        me, found = self.start.broker_id, {}
        for topic in view.topics.values():
            typed = config.topic_config(topic.config)
            for number, p in enumerate(topic.partitions):
                if me in p.replicas and len(p.replicas) > 1:
                    directory = m.partition_directory(self.start.directory, topic.name, number, topic.topic_id)
                    found[p.block] = Role(
                        topic.name, topic.topic_id, number, p.block, p.leader, p.leader_epoch, p.replicas, p.isr, typed.min_insync_replicas,
                        directory, typed.segment_bytes, min(typed.flush_ms, 2**40) * MS,
                    )  # fmt: skip
        return found

    def _replicate(self, view: m.ClusterView, roles: dict[int, Role]) -> None:
        """Starts the thread with the first replicated partition; ends what is this broker's part no more, before its files are used otherwise."""
        if self.replication is None:
            from shmlog.broker.replication import Replication

            sys.setswitchinterval(0.0005)  # two threads of Python now: neither may wait 5 ms for the other
            self.replication = Replication(
                self.handle, self.start.cluster, self.start.broker_id, self.start.broker_epoch, bytes(ffi.buffer(self.control.header.cluster_id)), log,
                self._isr_changed, self._committed_and_durable,
            )  # fmt: skip
            self.replication.start()
        self.replication.brokers({b.id: b.broker_epoch for b in view.brokers.values()}, config.cluster_config(view.config).replica_lag_time_max_ms)
        for block, known in list(self.roles.items()):
            role = roles.get(block)
            if role is None or (role.topic_id, role.leader, role.leader_epoch) != (known.topic_id, known.leader, known.leader_epoch):
                end = self.replication.leave(block)
                del self.roles[block]
                if end is not None:
                    self.handed_over[block] = (known.topic_id, end)

    def _lead(self, role: Role, end_offset: int) -> None:
        assert self.replication is not None
        self.replication.lead(role, end_offset)
        self.roles[role.block] = role

    def _committed_and_durable(self, block: int) -> tuple[int, int]:
        """Any thread."""
        words = lib.sl_cluster_partition(self.cluster, block)
        if words == ffi.NULL:
            return 0, 0
        return tuple(int(lib.sl_get64(ffi.addressof(words, word))) & OFFSET_MASK for word in ("high_watermark", "durable"))  # type: ignore[return-value]

    def _isr_changed(self, change: m.IsrChange) -> None:
        """Called by the replication thread; the connection is this thread's."""
        self.isr_changes.append(change)
        os.eventfd_write(self.isr_wake, 1)

    def _ask_for_isr_changes(self) -> None:
        os.eventfd_read(self.isr_wake)
        changes = []
        while self.isr_changes:
            changes.append(self.isr_changes.popleft())
        if changes:
            self._send(m.AlterIsr(self.start.broker_id, self.start.broker_epoch, tuple(changes)))

    def _reports(self, view: m.ClusterView) -> list[m.ReplicaReport]:
        """What the files here hold of partitions that have no leader: the longest of their replicas will lead."""
        found = []
        for role in self._roles(view).values():
            if role.leader == m.NO_LEADER:
                try:
                    recovered = recovery.recover(role.directory, None, role.topic_id)
                except (ShmlogError, OSError) as exc:
                    log(f"{role}: {exc}")
                    continue
                epoch = recovered.files[-1].leader_epoch if recovered.files else 0
                found.append(m.ReplicaReport(role.block, role.topic_id, epoch, recovered.end - recovered.missing))
        return found

    def _send_applied(self, version: int, removed: list[tuple[int, bytes]], dropped: list[tuple[int, bytes]]) -> None:
        if self.connection is not None and (removed or dropped):
            self._send(m.BrokerApplied(self.start.broker_id, self.start.broker_epoch, version, tuple(removed), tuple(dropped)))

    def _take_over(self, topic: m.TopicView, number: int, view: m.PartitionView) -> None:
        directory = ""
        if self.start.directory and config.topic_config(topic.config).shmlog_spill:
            directory = m.partition_directory(self.start.directory, topic.name, number, topic.topic_id)
        partition = Partition(topic, number, view, directory)
        try:
            self._recover_and_add(partition, topic)
        except (ShmlogError, OSError) as exc:
            # One partition's disk is one partition's trouble: the others are taken over, this one is tried again.
            why = str(exc)
            if self.failed.get(view.block, (0, ""))[1] != why:
                log(f"{partition} cannot be taken over: {why}")
            self.failed[view.block] = (monotonic_ns() + NS, why)
            if partition.words is not None:  # for clients, status and verify: until sl_broker_add() succeeds nobody else writes it
                partition.words.storage_errno = getattr(exc, "errno", None) or 0
                partition.words.storage_state = lib.SL_STORAGE_SHM_FULL if isinstance(exc, ShmSpaceError) else lib.SL_STORAGE_DISK_ERROR
            return
        if self.failed.pop(view.block, None):
            log(f"{partition} is taken over after all")
        self.partitions[view.block] = partition
        assert self.view is not None
        if partition.replicated:
            self._lead(self._roles(self.view)[view.block], partition.written_end)
        self._beat()

    def _write_topic(self, directory: str, topic: m.TopicView) -> None:
        """For the day on which the cluster's database is lost; a disk that does not take it holds up nothing."""
        if not directory:
            return
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            directories.write_topic(directory, topic)
        except OSError as exc:
            log(f"{directory}: what it is cannot be written beside it: {exc}")

    def _write_epochs(self, view: m.ClusterView, leader_epoch: int) -> None:
        """Before anything is done under these epochs."""
        if not self.start.directory:
            return
        was = self.epochs
        if was is None:
            was = directories.read_epochs(self.start.directory)
        now = directories.EpochsFile(
            view.boot_counter, view.version, self.start.broker_epoch, max(leader_epoch, was.leader_epoch), view.config, m.directories_elsewhere(view)
        )
        if self.epochs is not None and msgspec.structs.replace(now, view_version=was.view_version) == was:
            return  # a view version alone is not worth a write: a rebuilt cluster begins far above
        try:
            directories.write_epochs(self.start.directory, now, sync=now.boot_counter != was.boot_counter)
            self.epochs = now
        except OSError as exc:
            log(f"{self.start.directory}: its epochs cannot be written: {exc}")

    def _recover_and_add(self, partition: Partition, topic: m.TopicView) -> None:
        words = lib.sl_cluster_partition(self.cluster, partition.block)
        if words == ffi.NULL:
            raise IllegalStateError(f"block {partition.block} of {partition} is not there")
        partition.words = words
        base = start = missing = 0
        if partition.directory:
            found = self._recover(partition, words)
            base, start, missing = found.end, found.log_start, found.missing
            noted = recovery.read_checkpoint(partition.directory)
            if partition.replicated and start > noted:
                # Its oldest file is gone, and nobody has moved the log start: others have it still, and would remove it if we said that the log
                # begins later.
                log(f"{partition}: records from offset {noted} to {start - 1} are gone here: a file was removed or damaged")
                start = noted
            self._write_topic(partition.directory, topic)
            partition.files = self._facts_of(partition, found.files)
            partition.written_down = noted
            if found.cut_bytes:
                log(f"{partition}: {found.cut_bytes} bytes behind offset {base - missing} were cut")
            if missing:
                log(f"{partition}: {missing} records from offset {base - missing} on were on disk and are gone: a file was removed or damaged")
        partition.written_end = base - missing
        given = self._options(partition, base)
        given.missing = missing
        if partition.replicated:
            factor.before_opening(self.cluster, self.row, partition.block, partition.leader_epoch, self._in_memory(words))
        code = lib.sl_broker_add(self.handle, given)
        if code < 0:
            raise_code(code, f"{partition} cannot be opened: {ffi.string(lib.sl_strerror(code)).decode()}")
        if not partition.replicated:
            factor.after_opening(self.cluster, self.row, partition.block, partition.leader_epoch)
        if start > partition.offset("log_start"):
            check(lib.sl_broker_trim(self.handle, partition.block, start))
        partition.seen_end = self._end(partition)
        # What cannot be known any more is counted from now: a log must not vanish because its broker was away.
        known = [file.appended_ns for file in partition.files[-1:]] + ([int(words.last_append_ns)] if words.last_append_ns else [])
        partition.appended_ns = max(known, default=self._now_ns())

    def _recover(self, partition: Partition, words: Any) -> recovery.Recovered:
        """With memory intact what lies in the files beyond `spilled` is written again. Not of a replicated partition: that word is what all have, and
        what this replica has acknowledged beyond it may be committed the next moment."""
        topic_id, end = self.handed_over.pop(partition.block, (b"", 0))
        if topic_id == partition.topic_id:
            files = recovery.list_files(partition.directory)
            checkpoint = recovery.read_checkpoint(partition.directory)
            return recovery.Recovered(max(checkpoint, files[0].base_offset if files else end), end, 0, files, 0)
        keep = partition.replicated or not self._in_memory(words)
        return recovery.recover(partition.directory, None if keep else partition.offset("spilled"), partition.topic_id)

    def _options(self, partition: Partition, base: int) -> Any:
        given = ffi.new("sl_broker_partition *")
        given.block = partition.block
        given.leader_epoch = partition.leader_epoch
        given.base_offset = base
        given.file_roll_bytes = partition.config.segment_bytes
        if (limit := self._limit()) >= 0:  # the guard removes whole files: one as large as the limit would take all records with it
            given.file_roll_bytes = min(given.file_roll_bytes, max(limit // LIMIT_FILES, config.KIB * 64))
        given.flush_ns = min(partition.config.flush_ms, 2**40) * MS
        given.flush_messages = partition.config.flush_messages
        given.replicated = partition.replicated
        self._directory = ffi.new("char[]", os.fsencode(partition.directory)) if partition.directory else ffi.NULL  # lives over the call
        given.dir = self._directory
        return given

    def _in_memory(self, words: Any) -> bool:
        """Whether an earlier broker's segments of this partition are still there."""
        number = words.cur & NUMBER_MASK
        word = words.dir[number % lib.SL_DIR_SLOTS]
        buffer = word & 0xFFFFFFF
        named = bool(number and buffer and (word >> 28) & 0xFFFF == number & 0xFFFF)
        # Somebody may have unlinked what the words still name: then only the files are left, as after a reboot.
        return named and shm.identity(shm.object_name(self.prefix, f"s{buffer}")) is not None

    def _configure(self, partition: Partition, topic: m.TopicView) -> None:
        partition.config_strings = topic.config
        partition.config = config.topic_config(topic.config)
        partition.policy = retention.policy(partition.config)
        lib.sl_broker_configure(self.handle, self._options(partition, 0))
        self._write_topic(partition.directory, topic)
        self.sweep_at_ns = 0

    def _release(self, partition: Partition) -> None:
        self._written_down(partition)
        lib.sl_broker_release(self.handle, partition.block)
        del self.partitions[partition.block]

    def _written_down(self, partition: Partition | None) -> None:
        """Waits until nobody writes in its directory any more."""
        while partition is not None and partition.writing_down is not None and not partition.writing_down.done():
            wait([partition.writing_down], HEARTBEAT_NS / NS)
            self._beat()

    def _remove(self, gone: m.DeletingPartition) -> None:
        self._written_down(self.partitions.pop(gone.block, None))
        self.failed.pop(gone.block, None)
        words = lib.sl_cluster_partition(self.cluster, gone.block)
        if words != ffi.NULL and bytes(ffi.buffer(words.topic_id)) == gone.topic_id:
            lib.sl_broker_remove(self.handle, gone.block)
        self._remove_directory(m.partition_directory(self.start.directory, gone.topic, gone.partition, gone.topic_id))

    # === files =========================================================================================================

    def _now_ns(self) -> int:
        return self.clock.now_ns(wall_ns(), monotonic_ns())

    def _facts_of(self, partition: Partition, entries: list[recovery.Entry]) -> list[retention.FileFacts]:
        """Facts of closed files; what is known already is not looked up again."""
        known = {file.name: file for file in partition.files}
        facts = []
        for index, entry in enumerate(entries):
            if entry.name in known:
                facts.append(known[entry.name])
                continue
            path = os.path.join(partition.directory, entry.name)
            try:
                status = os.stat(path)
                size = status.st_size + os.stat(path.removesuffix(".log") + ".cells").st_size
            except FileNotFoundError:
                continue
            end = entry.until
            if index + 1 == len(entries):
                end = recovery.inspect(partition.directory, entry.name).end_offset  # type: ignore[attr-defined]
            # Within this life the steady clock knows better than the file system's, which may have been stepped.
            appended = partition.appended_ns or min(status.st_mtime_ns, self._now_ns())
            facts.append(retention.FileFacts(entry.name, entry.base_offset, end, size, appended, appended))
        return facts

    def _refresh_files(self, partition: Partition, closed_end: int) -> None:
        """After a roll: closed is what begins below the end of the file that was closed."""
        partition.files = self._facts_of(partition, [e for e in recovery.list_files(partition.directory) if e.base_offset < closed_end])

    def _has_active(self, partition: Partition) -> bool:
        """Whether a file is being written. The words name the newest file, which may be closed: then nothing was written since."""
        end = partition.files[-1].end_offset if partition.files else -1
        base = int(partition.words.file_base_offset)
        return int(partition.words.file_leader_epoch) == partition.leader_epoch and partition.offset("spilled") > max(end, base)

    def _active_facts(self, partition: Partition) -> retention.FileFacts | None:
        if not self._has_active(partition):
            return None
        name = partition.active_file()
        path = os.path.join(partition.directory, name)
        try:
            size = os.stat(path).st_size
            made = os.stat(path.removesuffix(".log") + ".cells").st_ctime_ns if partition.policy.roll_ns >= 0 else 0
        except FileNotFoundError:
            return None
        made = min(made, partition.appended_ns)
        return retention.FileFacts(name, int(partition.words.file_base_offset), partition.offset("spilled"), size, partition.appended_ns, made, True)

    def _sweep(self) -> None:
        now = monotonic_ns()
        if now < self.sweep_at_ns:
            return
        self.sweep_at_ns = now + max(SWEEP_NS, SWEEP_PER_PARTITION_NS * len(self.partitions))
        for block in [block for block, (at, _) in self.failed.items() if at <= now]:
            self._retry(block)
        wall = self._now_ns()
        for partition in list(self.partitions.values()):
            if not partition.directory:
                continue
            try:
                self._sweep_partition(partition, wall)
            except (OSError, ShmlogError) as exc:
                log(f"{partition}: retention failed: {exc}")
        for role in self.replication.followed() if self.replication is not None else ():
            try:
                self._sweep_follower(role)
            except (OSError, ShmlogError) as exc:
                log(f"{role}: retention failed: {exc}")
        try:
            self._guard_disk()
        except (OSError, ShmlogError) as exc:
            log(f"the guard of the disk failed: {exc}")

    def _retry(self, block: int) -> None:
        assert self.view is not None
        for topic in self.view.topics.values():
            for number, p in enumerate(topic.partitions):
                if p.block == block and p.leader == self.start.broker_id:
                    self._take_over(topic, number, p)
                    return
        self.failed.pop(block, None)

    def _sweep_follower(self, role: Role) -> None:
        """The leader decides where the log begins; whole files below that go here too."""
        words = lib.sl_cluster_partition(self.cluster, role.block)
        log_start = int(lib.sl_get64(ffi.addressof(words, "log_start"))) & OFFSET_MASK
        gone = tuple(entry.name for entry in recovery.list_files(role.directory) if entry.until <= log_start)
        if gone:
            recovery.write_checkpoint(role.directory, log_start)
            recovery.remove_files(role.directory, gone)

    def _sweep_partition(self, partition: Partition, now_ns: int) -> None:
        end = partition.offset("spilled")
        if end != partition.seen_end:
            partition.seen_end = end
            seen_ns = int(partition.words.last_append_ns)  # by the wall clock: as good as ours while that was not stepped
            stepped = abs(wall_ns() - now_ns) > NS or seen_ns > now_ns
            partition.appended_ns = now_ns if stepped else max(partition.appended_ns, seen_ns)
        self._bear_witness(partition)
        log_start = partition.offset("log_start")
        files = partition.files
        active = self._active_facts(partition)
        if not files and active is None:
            return
        decision = retention.decide([*files, *([active] if active else [])], log_start, partition.policy, now_ns)
        if decision:
            self._carry_out(partition, decision)
        elif partition.policy.delete and partition.policy.retention_ns >= 0:
            oldest = files[0] if files else active
            assert oldest is not None
            left_ns = oldest.appended_ns + partition.policy.retention_ns - now_ns + MS
            self.sweep_at_ns = min(self.sweep_at_ns, monotonic_ns() + max(left_ns, MS))

    def _bear_witness(self, partition: Partition, *, at_once: bool = False) -> None:
        """Notes how far the partition is durable, apart from its files (recovery.py says what for). What was dropped or trimmed needs no witness."""
        durable = partition.offset("durable")
        now = monotonic_ns()
        if durable <= partition.witness or durable <= partition.offset("log_start"):
            return
        if at_once or now - partition.witness_ns > recovery.WITNESS_NS:
            recovery.write_witness(partition.directory, durable)
            partition.witness, partition.witness_ns = durable, now

    def _carry_out(self, partition: Partition, decision: retention.Decision) -> None:
        if decision.remove:

            def then(error: OSError | ShmlogError | None) -> None:
                if error is None:
                    log(f"{partition}: {len(decision.remove)} files removed; the log begins at {decision.log_start}")
                else:
                    log(f"{partition}: files below {decision.log_start} cannot be removed: {error}")
                    partition.files = sorted([*removed, *partition.files], key=lambda file: file.base_offset)

            removed = [file for file in partition.files if file.name in decision.remove]
            partition.files = [file for file in partition.files if file.name not in decision.remove]
            self._raise_log_start(partition, decision.log_start, decision.remove, then)
        if decision.roll:
            lib.sl_broker_roll(self.handle, partition.block)  # ROLLED comes as an event, and then the next look

    def _raise_log_start(
        self, partition: Partition, log_start: int, remove: tuple[str, ...], then: Callable[[OSError | ShmlogError | None], None]
    ) -> None:
        """In force at once; then, off this thread, written down; only then files may go. `then` is called here when that is done, or has failed."""
        if log_start > partition.offset("log_start"):
            check(lib.sl_broker_trim(self.handle, partition.block, log_start), f"the log start of {partition} cannot be raised")
        if not partition.directory or (log_start <= partition.written_down and not remove):
            then(None)
            return

        def job() -> None:
            if log_start > partition.written_down:
                recovery.write_checkpoint(partition.directory, log_start)
                partition.written_down = log_start
            recovery.remove_files(partition.directory, remove)

        assert self.scribe is not None
        partition.writing_down = self.scribe.ask(job, then)

    def _end(self, partition: Partition) -> int:
        out = ffi.new("sl_offsets *")
        check(lib.sl_log_offsets(self.cluster, self.row, partition.block, out), f"the end of {partition} cannot be read")
        return int(out.end)

    def _trim(self, message: m.Trim) -> None:
        """The answer comes when the log start is written down."""
        partition = self.partitions.get(message.block)
        if partition is None or partition.topic_id != message.topic_id:
            raise UnknownTopicOrPartitionError("the partition is not led here")
        end = self._end(partition)
        offset = end if message.offset == -1 else message.offset
        if not 0 <= offset <= end:
            raise OffsetOutOfRangeError(f"{partition} ends at {end}; {offset} is beyond it", topic=partition.topic, partition=partition.number)

        def then(error: OSError | ShmlogError | None) -> None:
            if error is None:
                self._send(m.Trimmed(message.request, partition.offset("log_start")))
            else:
                self._send(m.Trimmed(message.request, failure=m.failure_of(error)))

        self._raise_log_start(partition, offset, (), then)
        self.sweep_at_ns = 0

    # --- the guard: data.max.bytes, or the free part of the file system ---

    def _reserve(self) -> int:
        """Free bytes below which nothing is written. 0 when a limit is configured: then _guard_disk() counts."""
        if not self.start.directory or self._limit() >= 0:
            return 0
        status = os.statvfs(self.start.directory)
        total = status.f_blocks * status.f_frsize
        return min(max(GIB, total // 20), total // 4)

    def _limit(self) -> int:
        if self.view is None:
            return -1
        limit = config.cluster_config(self.view.config).data_max_bytes
        return limit // max(1, len(self.view.brokers)) if limit >= 0 else -1

    def _guard_disk(self) -> None:
        if not self.start.directory or any(p.writing_down is not None and not p.writing_down.done() for p in self.partitions.values()):
            return  # what goes already is not counted as free yet
        limit, reserve = self._limit(), self._reserve()
        closed = [(block, p.policy, p.files) for block, p in self.partitions.items()]
        if limit >= 0:
            used = sum(file.size for _, _, files in closed for file in files)
            used += sum(a.size for p in self.partitions.values() if p.directory and (a := self._active_facts(p)))
            excess = used - limit
        else:
            status = os.statvfs(self.start.directory)
            excess = reserve + reserve // 10 - status.f_bavail * status.f_frsize
        found = retention.make_room(closed, excess) if excess > 0 else []
        for removable in found:
            partition = self.partitions[removable.partition]
            self._carry_out(partition, retention.Decision(max(removable.file.end_offset, partition.offset("log_start")), (removable.file.name,), False))
        excess -= sum(removable.file.size for removable in found)
        full = limit >= 0 and excess > 0
        if full:
            reserve = 2**64 - 1
            for partition in self.partitions.values():  # what is being written can only go when it is closed
                if partition.directory and partition.policy.delete and self._has_active(partition):
                    lib.sl_broker_roll(self.handle, partition.block)
        if reserve != self.reserve_bytes:
            self.reserve_bytes = reserve
            lib.sl_broker_reserve_disk(self.handle, reserve)
        if full != self.guard_full:
            self.guard_full = full
            log(f"data.max.bytes is {'exceeded: nothing is written' if full else 'kept again'}")

    # === events of the C threads =======================================================================================

    def _take_events(self) -> None:
        event = ffi.new("sl_broker_event *")
        while lib.sl_broker_event_next(self.handle, event) == 1:
            partition = self.partitions.get(event.block)
            name = str(partition) if partition else f"block {event.block}"
            if event.kind == lib.SL_EVENT_ROLLED:
                if partition is not None:
                    try:
                        self._bear_witness(partition, at_once=True)
                        self._refresh_files(partition, event.offset)
                    except (OSError, ShmlogError) as exc:
                        log(f"{name}: {exc}")
                self.sweep_at_ns = min(self.sweep_at_ns, monotonic_ns() + 10 * MS)
                continue
            what = ffi.string(event.what).decode("utf-8", "replace")
            why = f" ({os.strerror(event.saved_errno)})" if event.saved_errno else ""
            log(f"{name}: {what}{why}")
            if event.kind == lib.SL_EVENT_FENCED and partition is not None and self.view is not None:
                log(f"{name}: leader epoch {partition.leader_epoch} is over")

    # === stopping ======================================================================================================

    def _stop(self, message: m.BrokerStop) -> None:
        """Nothing may be appended behind what is written now; then everything is written and synced. Ends the process, unless it cannot be done."""
        began = monotonic_ns()
        lib.sl_broker_fence(self.handle, ALL_BLOCKS)
        deadline = began + max(message.timeout_ms, 100) * MS
        refused_ns = 0
        while True:
            code = lib.sl_broker_drain(self.handle, min(monotonic_ns() + DRAIN_SLICE_NS, deadline))
            now = monotonic_ns()
            self._beat()
            self._take_events()
            if code == lib.SL_OK or now >= deadline:
                break
            if code == lib.SL_E_TIMEOUT:
                refused_ns = 0
            else:
                refused_ns = refused_ns or now
                if now - refused_ns > GIVE_UP_NS:
                    break
        assert self.scribe is not None
        wait([p.writing_down for p in self.partitions.values() if p.writing_down is not None], max(0, deadline - monotonic_ns()) / NS)
        self.scribe.take_up()
        unspilled = 0 if code == lib.SL_OK else max(1, lib.sl_broker_unspilled_bytes(self.handle))
        for partition in self.partitions.values():
            try:
                if partition.directory and not unspilled:
                    self._bear_witness(partition, at_once=True)
            except OSError as exc:
                log(f"{partition}: {exc}")
        failure = None
        if unspilled:
            text = ffi.string(lib.sl_strerror(code)).decode()
            log(f"stopping: {unspilled} bytes are not on disk: {text}")
            kind = StorageFullError if code == lib.SL_E_DISK_FULL else StorageError
            failure = m.failure_of(kind(f"{self.start.directory}: {text}", path=self.start.directory))
        self._send(m.BrokerStopped(self.start.broker_id, self.start.broker_epoch, unspilled, failure))
        if unspilled and not message.force:
            return  # a view with new leader epochs opens everything again
        if message.retired and self.start.directory:
            directories.mark_retired(self.start.directory)
        if self.replication is not None:
            self.replication.end()
        lib.sl_broker_free(self.handle)
        self._exit(0, f"stopped within {(monotonic_ns() - began) // MS} ms")


def main(start: m.BrokerStart) -> int:
    """The process's whole life; the spare calls it in a fresh fork."""
    log(f"starts as broker {start.broker_id}, epoch {start.broker_epoch}")
    try:
        return Broker(start).run()
    except ConnectionError as exc:
        log(f"cannot start: {exc}")
        return 1
    except BaseException:
        log(f"dies:\n{traceback.format_exc()}")
        raise
