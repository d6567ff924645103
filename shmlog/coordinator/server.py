"""The coordinator process: becomes the active one when it gets the lock, puts decisions in force, and keeps the other processes going.

What decides is metadata.py, what is written for others to read is memory.py; here are the event loop and the processes. One thread, and the store's.

Crash-safety. Everything that a successor needs stands in shared memory (control, rows, the view in force) and survives this process at any instruction;
each step says what is left if it is killed there. A successor never trusts a half-made thing: an object that is not READY, a view that control does
not name, a process entry whose pid has other start ticks. Only the holder of the flock on `lock` acts, and the flock drops at death; a *stopped*
holder is killed by the standby before it can be replaced. The flip of the view is a CAS from the version this coordinator saw last, so even one that
lost its lock (somebody removed the file) decides nothing.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import shutil
import time
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from shmlog import config, proc, shm
from shmlog import messages as m
from shmlog import spare as spare_process
from shmlog._ffi import check, ffi, lib
from shmlog.clock import MS, NS, monotonic_ns
from shmlog.coordinator import metadata
from shmlog.coordinator.connections import Connection, Connections
from shmlog.coordinator.memory import COORDINATOR_SLOTS, Memory, log, open_memory
from shmlog.coordinator.rows import Rows
from shmlog.coordinator.spare_link import SpareLink, ended
from shmlog.coordinator.store import BackgroundStore, Store
from shmlog.errors import (
    BrokerNotRunningError,
    IllegalStateError,
    KafkaTimeoutError,
    LeaderNotAvailableError,
    ShmlogError,
    ShmSpaceError,
    StorageError,
    UnknownTopicOrPartitionError,
    VersionMismatchError,
)
from shmlog.spare import EXIT_REFUSED, EXIT_SURPLUS

TICK_NS = 250 * MS
STALE_NS = 1 * NS  # a heartbeat older than this makes us ask /proc whether its process is stopped; it proves nothing
ROWS_RETRY_NS = 1 * NS  # cleaning a row looks at every partition
TRIM_TIMEOUT_NS = 10 * NS
STORE_REPLY_NS = 10 * NS  # how long a reply to a topic change waits for the disk before it says so
END_TIMEOUT_S = 2.0  # for what was killed to have ended
RESTART_DELAY_MAX_NS = 5 * NS
STANDBY_RETRY_NS = 200 * MS  # between two standbys, when one dies at once
STARTS_MAX = 3  # deaths of a broker before it was ever ready, after which the first `up` reports failure

Reply = Callable[[Any], None]


def main(options: m.StartOptions, slot: int, ready_fd: int) -> int:
    """Exit code 0: the cluster is down, or this one is not needed. EXIT_REFUSED: it cannot start, and has said why."""
    coordinator = Coordinator(options, slot, ready_fd)
    try:
        return coordinator.run()
    except ShmlogError as exc:
        log(f"cannot start: {exc}")
        if coordinator.made_memory:
            shm.remove_cluster(coordinator.prefix)  # nobody has been told of it yet
        coordinator.report_start(m.failure_of(exc))
        return EXIT_REFUSED
    except BaseException as exc:
        coordinator.report_start(m.failure_of(exc))
        raise


class Broker:
    """A broker as this coordinator supervises it."""

    def __init__(self, id: int) -> None:
        self.id = id
        self.pidfd = -1  # -1: not running
        self.pid = 0
        self.start_ticks = 0
        self.ready = False
        self.connection: Connection | None = None
        self.deaths_unready = 0
        self.start_at_ns = 0  # not before; 0: at once
        self.failure: m.Failure | None = None
        self.stopped = False  # in a shutdown: it has reported that all is safe

    @property
    def running(self) -> bool:
        return self.pidfd >= 0


class Stopping:
    """An orderly shutdown under way."""

    def __init__(self, force: bool, deadline_ns: int) -> None:
        self.force = force
        self.deadline_ns = deadline_ns
        self.replies: list[Reply] = []
        self.problems: dict[int, m.BrokerStopped] = {}


class Coordinator:
    def __init__(self, options: m.StartOptions, slot: int, ready_fd: int) -> None:
        self.options = options
        self.slot = slot
        self.ready_fd = ready_fd
        self.from_up = ready_fd >= 0
        self.cluster = options.cluster
        self.prefix = shm.prefix(self.cluster)
        self.run_dir = config.run_dir(self.cluster)
        self.lock_fd = -1
        self.spare = SpareLink(options, self.run_dir)
        self.selector = selectors.DefaultSelector()

        # of the active one, and of the standby once there is something to attach to
        self.memory: Memory = None  # type: ignore[assignment]

        # of the active one, set by _activate()
        self.rows: Rows
        self.connections: Connections
        self.epoch = 0
        self.view: m.ClusterView = None  # type: ignore[assignment]
        self.store: BackgroundStore | None = None
        self.store_wake = -1
        self.waiting_for_store: list[tuple[int, int, Reply, Any]] = []  # version, deadline, reply, message
        self.brokers: dict[int, Broker] = {}
        self.trims: dict[int, tuple[int, Callable[[int | m.Failure], None]]] = {}
        self.next_trim = 1
        self.standby_slot = 0
        self.standby = (0, 0)  # pid, start ticks
        self.standby_pidfd = -1
        self.standby_asked_ns = 0
        self.owner_pidfd = -1
        self.stopping: Stopping | None = None
        self.finished = False
        self.last_tick_ns = 0
        self.grace_until_ns = 0
        self.retry_rows_at_ns = 0
        self.view_failed = False
        self.made_memory = False  # and so may remove it if the start fails

    def run(self) -> int:
        self.spare.connect()
        if not self._wait_for_lock():
            return 0
        if self.memory is not None and not self.from_up and self._memory_is_gone():
            log("the cluster was discarded; ending")  # beginning from disk would bring back what somebody has given up
            return 0
        self._activate()
        self._loop()
        return 0

    @property
    def control(self) -> Any:
        return self.memory.control

    def report_start(self, failure: m.Failure | None, already: bool = False) -> None:
        if self.ready_fd >= 0:
            try:
                os.write(self.ready_fd, m.encode(m.StartOutcome(failure, already)))
            except OSError:
                pass  # `up` was interrupted
            os.close(self.ready_fd)
            self.ready_fd = -1

    # === standby =======================================================================================================

    def _wait_for_lock(self) -> bool:
        """True: this is the active coordinator. False: the cluster is down. A standby owns nothing, so it may die here at any time."""
        path = os.path.join(self.run_dir, shm.LOCK_NAME)
        try:
            self.lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return False
        active_pidfd, active = -1, (0, 0)
        poller = selectors.DefaultSelector()
        last_look = monotonic_ns()
        if self.spare.sock is not None:
            poller.register(self.spare.sock, selectors.EVENT_READ)
        while True:
            try:
                fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                poller.close()
                if active_pidfd >= 0:
                    os.close(active_pidfd)
                return self._lock_is_current(path)
            if not self._lock_is_current(path):
                return False
            self._attach_as_standby()
            if self.memory is not None:
                if not self._list_as_standby():
                    poller.close()
                    if active_pidfd >= 0:
                        os.close(active_pidfd)
                    self.report_start(None, already=True)
                    raise SystemExit(EXIT_SURPLUS)
                now = monotonic_ns()
                self.memory.beat(self.slot, now)
                found = self._active_process()
                if found != active:
                    if active_pidfd >= 0:
                        poller.unregister(active_pidfd)
                        os.close(active_pidfd)
                    watched = proc.watch(*found)
                    if watched is None:  # dead already, then the lock is free; or a new one has not written its name yet
                        active, active_pidfd = (0, 0), -1
                        time.sleep(0.001)
                        continue
                    active, active_pidfd = found, watched
                    poller.register(active_pidfd, selectors.EVENT_READ)
                elif now - last_look < 2 * STALE_NS and now - self.control.coordinator_alive_ns > STALE_NS and proc.stopped(*active):
                    # Stopped, not slow: /proc is the witness. Dead it drops the lock; stopped it would keep it for ever.
                    log(f"killing the stopped coordinator {active[0]}")
                    proc.kill(active_pidfd)
                last_look = now
                if self.from_up and self.control.cluster_state == lib.SL_CLUSTER_UP and proc.alive(*active):
                    # `up` saw nobody, but somebody was about to be active: from here on this is a standby like any other.
                    self.from_up = False
                    self.report_start(None, already=True)
            if self.spare.sock is None:
                self.spare.connect()
                if self.spare.sock is not None:
                    poller.register(self.spare.sock, selectors.EVENT_READ)
            # Its death makes the pidfd readable after its files, and so the lock, are gone.
            for key, _ in poller.select(TICK_NS / NS):
                if key.fileobj is self.spare.sock:  # a spare says nothing to a standby: this is its end
                    poller.unregister(self.spare.sock)
                    self.spare.drop()

    def _lock_is_current(self, path: str) -> bool:
        """Whether the file locked here is still the one at this path; a cluster that went down has removed it."""
        try:
            status, mine = os.stat(path), os.fstat(self.lock_fd)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == (mine.st_dev, mine.st_ino)

    def _attach_as_standby(self) -> None:
        if self.memory is not None:
            return
        _, memory = open_memory(self.prefix)
        if memory is None:
            return  # still being made
        self.memory = memory

    def _list_as_standby(self) -> bool:
        """Each time round: another one may have taken the same entry at the same moment, and whoever stands in none is dead to clients. False: there
        are enough of us."""
        me = os.getpid()
        if self.slot and self.control.processes[self.slot].pid == me:
            return True
        if not self._choose_slot():
            log("three coordinators live already; this one is not needed")
            return False
        self.memory.write_process(self.slot, lib.SL_ROLE_STANDBY, 0, me, proc.start_ticks(me), lib.SL_PROCESS_UP, 0)
        self.memory.clear_others(self.slot, me)
        return True

    def _choose_slot(self) -> bool:
        """Never an entry in which another one lives: it was forked for the same one by another coordinator, or `up` (which says 1) did not see it.
        A last resort of the spare has none (0). False: three live."""
        entry = self.control.processes[self.slot]
        if self.slot == 0 or (entry.pid != os.getpid() and proc.alive(entry.pid, entry.start_ticks)):
            self.slot = self.memory.free_slot()
        return self.slot != 0

    def _active_process(self) -> tuple[int, int]:
        for slot in COORDINATOR_SLOTS:
            process = self.control.processes[slot]
            if process.role == lib.SL_ROLE_COORDINATOR and process.pid != os.getpid():
                return process.pid, process.start_ticks
        return 0, 0

    # === becoming active ===============================================================================================

    def _activate(self) -> None:
        began = monotonic_ns()
        fresh = not self._resume_memory()
        if fresh:
            self.made_memory = True
            self._make_memory()
        self._use_process_slot()
        state = self.control.cluster_state
        if state == lib.SL_CLUSTER_DOWN:
            # The predecessor died while it removed everything; all was safe by then.
            log("finishing the removal that another coordinator began")
            if self.store is not None:
                self.store.close(None)
            self._remove_everything()
            self.finished = True
            return
        self.connections = Connections(self.run_dir, self.selector, self._handle, self._connection_closed)
        self.spare.adopt(self.memory, self.selector, self.view.state_dir)
        self.rows = Rows(self.memory, self.run_dir, self.selector)
        self.rows.adopt()
        self._adopt_brokers()
        self.memory.reconcile_blocks(self.view)
        self._watch_owner()
        self.last_tick_ns = monotonic_ns()
        self._tick()
        if state == lib.SL_CLUSTER_STOPPING and self.from_up:
            state = lib.SL_CLUSTER_UP  # everything was killed while it was stopping, and now it is wanted again
        if state != lib.SL_CLUSTER_STOPPING:
            self.memory.set_state(lib.SL_CLUSTER_STARTING if fresh else lib.SL_CLUSTER_UP)
        self._start_brokers()
        if state == lib.SL_CLUSTER_STOPPING:
            log("going on with the shutdown that another coordinator began")
            self._begin_shutdown(False, monotonic_ns() + 60 * NS, lambda message: None)
        else:
            self._ask_for_standby()
        self._check_ready()
        log(f"active: epoch {self.epoch >> 32}.{self.epoch & 0xFFFFFFFF}, view {self.view.version}, {'fresh' if fresh else 'resumed'} memory, "
            f"{(monotonic_ns() - began) / MS:.1f} ms")  # fmt: skip

    def _resume_memory(self) -> bool:
        """Attaches to memory of this boot that a predecessor left. False: there is none that can be used, and nothing of it is left."""
        if self.memory is not None:  # from the time as standby; what is there now may be another life of the cluster
            self.memory.close()
        code, control = shm.read_control(self.prefix)
        if code == lib.SL_E_OWNER:
            raise IllegalStateError(f"{shm.object_name(self.prefix, 'control')} belongs to another user")
        if code == lib.SL_E_VERSION:
            boot = ffi.new("uint8_t[16]")
            check(lib.sl_boot_id(boot))
            if bytes(ffi.buffer(boot)) == bytes(ffi.buffer(control.header.boot_id)):
                raise VersionMismatchError(
                    f"cluster {self.cluster!r} left memory of layout {control.header.layout_version}; this shmlog has layout {lib.SL_LAYOUT_VERSION}",
                    hint="start and stop it with the version that made it, so that its memory reaches the disk; or discard it: `shmlog down --force`",
                    found=control.header.layout_version,
                    supported=lib.SL_LAYOUT_VERSION,
                )
        # DOWN: all was safe, only the removal was not finished. `up` then begins anew; a standby finishes it, see _activate().
        if code == lib.SL_OK and control.view_version != 0 and not (self.from_up and control.cluster_state == lib.SL_CLUSTER_DOWN):
            code, memory = open_memory(self.prefix)
            if memory is not None:
                self.memory = memory
                if self._take_over():
                    return True
                memory.close()
        if code not in (lib.SL_E_NOENT, lib.SL_E_BOOT, lib.SL_OK):
            log(f"memory of an earlier run cannot be used: {ffi.string(lib.sl_strerror(code)).decode()}; beginning from disk")
        removed = shm.remove_cluster(self.prefix)
        if removed:
            log(f"removed {removed} objects of an earlier run")
        return False

    def _take_over(self) -> bool:
        """First the epoch: from here on every decision of a predecessor is older."""
        self.epoch = self.memory.raise_epoch()
        view = self.memory.read_view(self.memory.view_version())
        if view is None:
            log("the metadata in memory is damaged or gone; beginning from disk")
            return False
        if self.from_up:
            view_wanted = metadata.configured(view, self.options)
        else:
            view_wanted = view
        self.view = view
        self._open_store(view)
        if view_wanted != view:
            self._decide(view_wanted)
        return True

    def _open_store(self, view: m.ClusterView) -> None:
        """Memory of this boot is never older than the store, which follows behind it; so what memory says is written there."""
        if not view.data_dirs:
            return
        store = Store(view.data_dirs[0])
        loaded = store.load()
        if loaded is None or loaded.view.cluster_id != view.cluster_id:
            other = "no cluster" if loaded is None else f"cluster {loaded.view.cluster_id.hex()}"
            if loaded is not None:
                store.close()
                raise IllegalStateError(
                    f"memory holds cluster {view.cluster_id.hex()}, but {view.data_dirs[0]} holds {other}",
                    hint="start with the data directory that belongs to the memory, or discard the memory: `shmlog down --force`",
                )
            boot = ffi.new("uint8_t[16]")
            check(lib.sl_boot_id(boot))
            store.begin(bytes(ffi.buffer(boot)), view.boot_counter, view)
        self._run_store(store, loaded.view.version if loaded else view.version)
        assert self.store is not None
        self.store.submit(view)

    def _run_store(self, store: Store, stored_version: int) -> None:
        self.store_wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.store = BackgroundStore(store, stored_version, lambda: os.eventfd_write(self.store_wake, 1))
        self.selector.register(self.store_wake, selectors.EVENT_READ, self._store_progress)

    def _make_memory(self) -> None:
        """Fresh memory, from disk or for a new cluster. `control` comes last: until it is READY a successor begins again, which costs a boot number."""
        boot = ffi.new("uint8_t[16]")
        check(lib.sl_boot_id(boot))
        options = self.options
        if options.data_dirs is None:
            assert options.state_dir
            options = msgspec.structs.replace(options, data_dirs=(options.state_dir,))
        store, loaded = None, None
        if options.data_dirs:
            store = Store(options.data_dirs[0])
            loaded = store.load()
        try:
            boot_counter = loaded.boot_counter + 1 if loaded else 1
            if loaded:
                view = metadata.configured(metadata.relocated(metadata.restarted(loaded.view, loaded.clean), options.data_dirs or ()), options)
            else:
                view = metadata.new_cluster(options, os.urandom(16))
            view = metadata.next_view(view, 0, boot_counter=boot_counter, name=self.cluster)
            if store:
                store.begin(bytes(ffi.buffer(boot)), boot_counter, view)  # durable before the first grant of this boot
            for table in shm.TABLES:
                shm.create_table(self.prefix, table, cluster_id=view.cluster_id)
            self.epoch = boot_counter << 32 | 1
            header_bytes = ffi.sizeof("sl_object_header")
            image = ffi.new("sl_control *")
            image.coordinator_epoch = self.epoch
            image.cluster_state = lib.SL_CLUSTER_STARTING
            image.boot_counter = boot_counter
            image.coordinator_alive_ns = monotonic_ns()
            image.memory_max_bytes = self._memory_budget(view)
            shm.create(
                shm.object_name(self.prefix, "control"),
                lib.SL_KIND_CONTROL,
                ffi.sizeof("sl_control"),
                cluster_id=view.cluster_id,
                body=bytes(ffi.buffer(image))[header_bytes:],
            )
        except BaseException:
            if store:
                store.close()
            raise
        code, memory = open_memory(self.prefix)
        check(code, "attaching to memory made just now")
        assert memory is not None
        self.memory = memory
        self.view = view
        if store:
            self._run_store(store, view.version)

    @staticmethod
    def _memory_budget(view: m.ClusterView) -> int:
        given = config.cluster_config(view.config).memory_max_bytes
        return given if given != -1 else max(shm.free_bytes() // 4, 2**20)

    # --- the process table ---

    def _use_process_slot(self) -> None:
        me = os.getpid()
        if not self._choose_slot():
            self.slot = COORDINATOR_SLOTS[-1]  # of a standby, which finds another entry or ends
        for slot in COORDINATOR_SLOTS:  # one that died as the active one must not be taken for it
            process = self.control.processes[slot]
            if slot != self.slot and process.role == lib.SL_ROLE_COORDINATOR:
                lib.sl_put32(ffi.addressof(process, "role"), lib.SL_ROLE_STANDBY)
        self.memory.write_process(self.slot, lib.SL_ROLE_COORDINATOR, 0, me, proc.start_ticks(me), lib.SL_PROCESS_UP, 0)
        self.memory.clear_others(self.slot, me)  # else it would take itself for its standby

    # === decisions =====================================================================================================

    def _decide(self, view: m.ClusterView) -> m.ClusterView:
        """Puts the contents of `view` in force as the next version. ShmSpaceError: nothing was decided.

        Killed before the flip: v<n> lies there unnamed (the successor overwrites it), blocks of new topics are marked LIVE but no view knows them
        (they are free, and are wiped when they are given out). Killed after it: the decision is in force; the successor brings blocks and disk up.
        """
        old = self.view
        new = metadata.next_view(view, self.epoch)
        for topic in new.topics.values():
            was = old.topics.get(topic.name)
            if was is topic:
                continue
            known = {p.block for p in was.partitions} if was and was.topic_id == topic.topic_id else set()
            for number, partition in enumerate(topic.partitions):
                if partition.block not in known:
                    self.memory.wipe_block(partition.block)
                    self.memory.write_block(new, topic, number, first=True)
        self.memory.flip(self.epoch, old.version, new)
        self.view = new
        self._after_flip(old, new)
        return new

    def _after_flip(self, old: m.ClusterView, new: m.ClusterView) -> None:
        """Idempotent: a successor does all of it again (Memory.reconcile_blocks)."""
        for topic in old.topics.values():
            now = new.topics.get(topic.name)
            if now is topic:
                continue
            if now is None or now.topic_id != topic.topic_id:
                for partition in topic.partitions:
                    self.memory.mark_deleted(partition.block, topic.topic_id)
        for topic in new.topics.values():
            was = old.topics.get(topic.name)
            if was is not topic and was is not None and was.topic_id == topic.topic_id:
                for number in range(len(topic.partitions)):
                    self.memory.write_block(new, topic, number, first=False)
        lib.sl_view_changed(self.control)
        if self.store:
            self.store.submit(new)
            behind = new.version - self.store.stored_version
            if behind >= metadata.UNSTORED_DECISIONS_MAX - 1:
                # At a new boot epochs jump by that many: further ahead of the disk a grant could be given twice after a power cut.
                self.store.wait_stored(new.version - metadata.UNSTORED_DECISIONS_MAX // 2, 5.0)
        shm.unlink(shm.view_name(self.prefix, new.version - 2))
        for broker in self.brokers.values():
            if broker.connection and broker.ready:
                self.connections.send(broker.connection, m.ViewChanged(new.version))

    # === the loop ======================================================================================================

    def _loop(self) -> None:
        while not self.finished:
            wait_ns = self.last_tick_ns + TICK_NS - monotonic_ns()
            for broker in self.brokers.values():
                if broker.start_at_ns:
                    wait_ns = min(wait_ns, broker.start_at_ns - monotonic_ns())
            for key, events in self.selector.select(max(wait_ns, 0) / NS):
                if isinstance(key.data, Connection):
                    self.connections.ready(key.data, events)
                else:
                    now_there = self.selector.get_map().get(key.fd)
                    if now_there is not None and now_there.data is key.data:  # not unregistered by an event before it
                        key.data()
                if self.finished:
                    return
            now = monotonic_ns()
            if now - self.last_tick_ns >= TICK_NS:
                self._tick()
            self._start_brokers()

    def _tick(self) -> None:
        self._end_if_discarded()
        now = monotonic_ns()
        if now - self.last_tick_ns > 4 * TICK_NS:
            # We were stopped ourselves, or everything was: whoever looks stale now may only not have had its turn yet.
            self.grace_until_ns = now + 2 * STALE_NS
        self.last_tick_ns = now
        lib.sl_put64(ffi.addressof(self.control, "coordinator_alive_ns"), now)
        self.memory.beat(self.slot, now)
        if now > self.grace_until_ns:
            self._kill_stopped(now)
        if self.spare.sock is None:
            self.spare.connect()  # a new one has come up meanwhile
        if self.rows.lingering and now >= self.retry_rows_at_ns:
            self.retry_rows_at_ns = now + ROWS_RETRY_NS
            self.rows.retry()
        for request, (deadline, done) in list(self.trims.items()):
            if now > deadline:
                del self.trims[request]
                done(m.failure_of(KafkaTimeoutError("the broker has not answered within 10 s; it may still trim")))
        if self.waiting_for_store:
            self._store_progress()
        if self.stopping and now > self.stopping.deadline_ns:
            self._shutdown_timed_out()
        if self.view_failed:
            self._start_brokers()
        if self.standby_pidfd < 0 and not self.stopping and self.standby_asked_ns and now - self.standby_asked_ns > STANDBY_RETRY_NS:
            self._ask_for_standby()

    def _end_if_discarded(self) -> None:
        """Somebody gave the cluster up and did not see us: its lock or its memory is gone, or another life of it is there. Nothing of that one is
        touched, and what we began ends."""
        if not self._memory_is_gone() and self._lock_is_current(os.path.join(self.run_dir, shm.LOCK_NAME)):
            return
        log("the cluster was discarded; ending")
        for broker in self.brokers.values():
            if broker.running:
                proc.kill(broker.pidfd)
        if self.spare.pidfd >= 0:
            proc.kill(self.spare.pidfd)
        raise SystemExit(0)

    def _memory_is_gone(self) -> bool:
        """Whether what this one is attached to has lost its name."""
        code, control = shm.read_control(self.prefix)
        ours = bytes(ffi.buffer(self.control.header.cluster_id))
        return bool(code == lib.SL_E_NOENT or (code == lib.SL_OK and bytes(ffi.buffer(control.header.cluster_id)) != ours))

    def _kill_stopped(self, now: int) -> None:
        for broker in self.brokers.values():
            if broker.running:
                self._kill_if_stopped(broker.pidfd, broker.pid, broker.start_ticks, metadata.FIRST_BROKER_PROCESS + broker.id, now)
        if self.standby_pidfd >= 0:
            self.standby_slot = self.memory.slot_of(*self.standby) or self.standby_slot  # it may have found its entry taken
            self._kill_if_stopped(self.standby_pidfd, *self.standby, self.standby_slot, now)

    def _kill_if_stopped(self, pidfd: int, pid: int, start_ticks: int, slot: int, now: int) -> None:
        """The heartbeat only makes us look. What /proc says now decides; the pidfd names exactly that process."""
        process = self.control.processes[slot]
        if now - process.heartbeat_ns > STALE_NS and process.pid == pid and proc.stopped(pid, start_ticks):
            log(f"killing the stopped process {pid} (entry {slot})")
            self.memory.process_state(slot, lib.SL_PROCESS_STOPPED)
            proc.kill(pidfd)

    # --- connections ---

    def _connection_closed(self, connection: Connection) -> None:
        broker = self.brokers.get(connection.broker_id) if connection.broker_id is not None else None
        if broker and broker.connection is connection:
            broker.connection = None

    def _handle(self, connection: Connection, message: Any) -> None:
        def reply(answer: Any) -> None:
            self.connections.send(connection, answer)

        handler = self._HANDLERS.get(type(message))
        try:
            if handler is None:
                raise IllegalStateError(f"{type(message).__name__} is not a request")
            handler(self, connection, message, reply)
        except ShmlogError as exc:
            reply(m.failure_of(exc))
        except SystemExit:
            raise
        except Exception as exc:  # a bug must not take the cluster with it
            import traceback

            log(f"{type(message).__name__} failed:\n{traceback.format_exc()}")
            reply(m.failure_of(exc))

    # --- topic requests ---

    def _decided(self, decision: metadata.Decision, reply: Reply) -> None:
        """Replies when what was decided is durable too (where there is a disk)."""
        if decision.view is not self.view:
            self._decide(decision.view)
        failures = tuple(None if exc is None else m.failure_of(exc) for exc in decision.failures)
        self._reply_when_stored(reply, m.Results(failures, self.view.version))

    def _reply_when_stored(self, reply: Reply, message: Any) -> None:
        if self.store is None or self.store.stored_version >= self.view.version:
            reply(message)
        else:
            self.waiting_for_store.append((self.view.version, monotonic_ns() + STORE_REPLY_NS, reply, message))

    def _store_progress(self) -> None:
        assert self.store is not None
        try:
            os.eventfd_read(self.store_wake)
        except BlockingIOError:
            pass
        stored, now, left = self.store.stored_version, monotonic_ns(), []
        for version, deadline, reply, message in self.waiting_for_store:
            if version <= stored:
                reply(message)
            elif now > deadline:
                why = self.store.error or "the disk is slow"
                reply(m.failure_of(StorageError(f"the change is in force but not on disk yet: {why}", path=self.view.data_dirs[0])))
            else:
                left.append((version, deadline, reply, message))
        self.waiting_for_store = left

    def _create_topics(self, connection: Connection, message: m.CreateTopics, reply: Reply) -> None:
        decision = metadata.create_topics(self.view, message.topics, lambda: os.urandom(16), self.memory.last_epoch)
        if message.validate_only:
            decision = decision._replace(view=self.view)
        self._decided(decision, reply)

    def _delete_topics(self, connection: Connection, message: m.DeleteTopics, reply: Reply) -> None:
        self._decided(metadata.delete_topics(self.view, message.names, message.repeated), reply)

    def _delete_namespace(self, connection: Connection, message: m.DeleteNamespace, reply: Reply) -> None:
        start = config.namespace_name(message.namespace) + "/"
        names = [name for name in self.view.topics if name.startswith(start)]
        decision = metadata.delete_topics(self.view, names)
        if decision.view is not self.view:
            self._decide(decision.view)
        self._reply_when_stored(reply, m.Done(self.view.version))

    def _create_partitions(self, connection: Connection, message: m.CreatePartitions, reply: Reply) -> None:
        self._decided(metadata.create_partitions(self.view, message.totals, message.repeated, self.memory.last_epoch), reply)

    def _alter_topic_configs(self, connection: Connection, message: m.AlterTopicConfigs, reply: Reply) -> None:
        self._decided(metadata.alter_topic_configs(self.view, message.configs), reply)

    def _delete_records(self, connection: Connection, message: m.DeleteRecords, reply: Reply) -> None:
        """The leader's broker does it; the reply comes when all have answered."""
        results: list[int | m.Failure | None] = [None] * len(message.partitions)
        open_requests = len(message.partitions)

        def done(index: int, result: int | m.Failure) -> None:
            nonlocal open_requests
            results[index] = result
            open_requests -= 1
            if open_requests == 0:
                reply(m.Trims(tuple(r for r in results if r is not None)))

        if not message.partitions:
            reply(m.Trims(()))
        for index, (name, number, offset) in enumerate(message.partitions):
            topic = self.view.topics.get(name)
            if topic is None or not 0 <= number < len(topic.partitions):
                done(index, m.failure_of(UnknownTopicOrPartitionError(f"there is no partition {name}-{number}", topic=name, partition=number)))
                continue
            partition = topic.partitions[number]
            broker = self.brokers.get(partition.leader)
            if broker is None or broker.connection is None or not broker.ready:
                done(index, m.failure_of(LeaderNotAvailableError(f"the leader of {name}-{number} is not up at the moment")))
                continue
            request, self.next_trim = self.next_trim, self.next_trim + 1
            self.trims[request] = (monotonic_ns() + TRIM_TIMEOUT_NS, lambda result, index=index: done(index, result))  # type: ignore[misc]
            self.connections.send(broker.connection, m.Trim(request, partition.block, topic.topic_id, offset))

    # --- rows ---

    def _register(self, connection: Connection, message: m.Register, reply: Reply) -> None:
        reply(m.Registered(self.rows.register(connection, message.kind, message.rows)))

    def _unregister(self, connection: Connection, message: m.Unregister, reply: Reply) -> None:
        self.rows.unregister(connection.pid, message.rows)
        reply(m.Done(self.view.version))

    def _describe_cluster(self, connection: Connection, message: m.DescribeCluster, reply: Reply) -> None:
        reply(m.Described(os.getpid(), self.epoch, self.view.version, len(self.rows.clients), self.rows.count()))

    # === brokers =======================================================================================================

    def _adopt_brokers(self) -> None:
        for id in self.view.brokers:
            broker = self.brokers[id] = Broker(id)
            process = self.control.processes[metadata.FIRST_BROKER_PROCESS + id]
            if process.role == lib.SL_ROLE_BROKER and process.broker_epoch == self.view.brokers[id].broker_epoch:
                pidfd = proc.watch(process.pid, process.start_ticks)
                if pidfd is not None:
                    self._watch_broker(broker, process.pid, process.start_ticks, pidfd)
                    broker.ready = process.state == lib.SL_PROCESS_UP  # it reconnects and says so again

    def _watch_broker(self, broker: Broker, pid: int, start_ticks: int, pidfd: int) -> None:
        broker.pid, broker.start_ticks, broker.pidfd = pid, start_ticks, pidfd
        self.selector.register(pidfd, selectors.EVENT_READ, lambda: self._broker_died(broker))

    def _start_brokers(self) -> None:
        """Starts all brokers that do not run and are due, under new epochs of their own and of what they lead.

        Killed between the flip and the fork: the successor finds no process under the new epoch and starts it under the next one. Killed between the
        fork and the process entry: that broker finds another epoch than its own in its entry and ends.
        """
        now = monotonic_ns()
        due = [b for b in self.brokers.values() if not b.running and not b.stopped and now >= b.start_at_ns]
        if not due or self.finished:
            return
        try:
            self._decide(metadata.start_brokers(self.view, [b.id for b in due]))
            self.view_failed = False
        except ShmSpaceError as exc:
            if not self.view_failed:
                log(f"no broker can be started: {exc}")
            self.view_failed = True
            for broker in due:
                broker.start_at_ns = now + NS
            return
        for broker in due:
            info = self.view.brokers[broker.id]
            broker.ready = False
            broker.start_at_ns = 0
            self.memory.write_process(info.process, lib.SL_ROLE_BROKER, broker.id, 0, 0, lib.SL_PROCESS_STARTING, info.broker_epoch)
            start = m.BrokerStart(self.cluster, broker.id, info.process, info.broker_epoch, info.directory)
            try:
                pid, ticks, pidfd = self.spare.fork(m.Fork("broker", broker.id, info.process, m.encode(start)))
            except ShmlogError as exc:
                log(f"broker {broker.id} could not be started: {exc}")
                broker.start_at_ns = now + NS
                continue
            self.memory.write_process(info.process, lib.SL_ROLE_BROKER, broker.id, pid, ticks, lib.SL_PROCESS_STARTING, info.broker_epoch)
            self._watch_broker(broker, pid, ticks, pidfd)
        lib.sl_view_changed(self.control)

    def _broker_died(self, broker: Broker) -> None:
        died = monotonic_ns()
        self.rows.process_died(broker.pid, broker.start_ticks)  # its rows first: its successor needs the segments that they name
        self.selector.unregister(broker.pidfd)
        os.close(broker.pidfd)
        broker.pidfd = -1
        self.memory.process_state(metadata.FIRST_BROKER_PROCESS + broker.id, lib.SL_PROCESS_DEAD)
        if broker.connection is not None:
            self.connections.close(broker.connection)
        if self.stopping:
            if not broker.stopped and not self.stopping.force:
                broker.start_at_ns = 0  # it died with things to spill: its successor spills them
                log(f"broker {broker.id} died while stopping; starting it again")
                self._start_brokers()
            else:
                broker.stopped = True
                self._check_stopped()
            return
        if broker.ready:
            broker.deaths_unready = 0
            log(f"broker {broker.id} (pid {broker.pid}) died; starting it again")
        else:
            broker.deaths_unready += 1
            log(f"broker {broker.id} (pid {broker.pid}) died before it was ready ({broker.deaths_unready})")
            broker.start_at_ns = died + min(50 * MS * 2**broker.deaths_unready, RESTART_DELAY_MAX_NS)
            if self.ready_fd >= 0 and (broker.failure or broker.deaths_unready >= STARTS_MAX):
                self._give_up_start(broker)
                return
        self._start_brokers()

    def _give_up_start(self, broker: Broker) -> None:
        """The first start failed: say why, and take down what there is; data on disk and memory of an earlier run stay."""
        path = spare_process.log_path(self.view.state_dir, f"broker-{broker.id}")
        died = BrokerNotRunningError(f"broker {broker.id} died {broker.deaths_unready} times while starting; its log is {path}")
        failure = broker.failure or m.failure_of(died)
        for other in self.brokers.values():
            if other.running:
                proc.kill(other.pidfd)
                ended(other.pidfd, END_TIMEOUT_S)
        self._end_others()
        if self.made_memory:
            shm.remove_cluster(self.prefix)
        self.report_start(failure)
        raise SystemExit(EXIT_REFUSED)

    def _broker_ready(self, connection: Connection, message: m.BrokerReady, reply: Reply) -> None:
        broker = self._broker_of(connection, message.broker_id, message.broker_epoch)
        connection.broker_id = broker.id
        broker.connection = connection
        broker.ready = True
        broker.deaths_unready = 0
        self.memory.process_state(metadata.FIRST_BROKER_PROCESS + broker.id, lib.SL_PROCESS_UP)
        reply(m.Done(self.view.version))
        if message.view_version < self.view.version:
            self.connections.send(connection, m.ViewChanged(self.view.version))
        lib.sl_view_changed(self.control)
        self._check_ready()
        if self.stopping and not broker.stopped:
            self.connections.send(connection, self._stop_message())

    def _broker_of(self, connection: Connection, broker_id: int, broker_epoch: int) -> Broker:
        broker = self.brokers.get(broker_id)
        known = self.view.brokers.get(broker_id)
        if broker is None or known is None or known.broker_epoch != broker_epoch or connection.pid != broker.pid:
            raise IllegalStateError(f"broker {broker_id} of epoch {broker_epoch} (pid {connection.pid}) is not the current one; it has to end")
        return broker

    def _broker_applied(self, connection: Connection, message: m.BrokerApplied, reply: Reply) -> None:
        self._broker_of(connection, message.broker_id, message.broker_epoch)
        view = metadata.blocks_removed(self.view, message.removed)
        if view is not self.view:
            self._decide(view)
        reply(m.Done(self.view.version))

    def _broker_failed(self, connection: Connection, message: m.BrokerFailed, reply: Reply) -> None:
        broker = self._broker_of(connection, message.broker_id, message.broker_epoch)
        log(f"broker {broker.id}: {message.failure.message}")
        broker.failure = message.failure
        reply(m.Done(self.view.version))

    def _trimmed(self, connection: Connection, message: m.Trimmed, reply: Reply) -> None:
        entry = self.trims.pop(message.request, None)
        if entry is not None:
            entry[1](message.failure if message.failure is not None else message.log_start)

    def _check_ready(self) -> None:
        if self.stopping or not all(b.ready for b in self.brokers.values()):
            return
        if self.control.cluster_state == lib.SL_CLUSTER_STARTING:
            self.memory.set_state(lib.SL_CLUSTER_UP)
            lib.sl_view_changed(self.control)
        self.report_start(None)

    # === spare and standby =============================================================================================

    def _ask_for_standby(self) -> None:
        self.standby_asked_ns = monotonic_ns()
        for slot in COORDINATOR_SLOTS:
            process = self.control.processes[slot]
            if process.pid not in (0, os.getpid()):
                pidfd = proc.watch(process.pid, process.start_ticks)
                if pidfd is not None:
                    self._watch_standby(slot, (process.pid, process.start_ticks), pidfd)
                    return
        slot = next(s for s in COORDINATOR_SLOTS if s != self.slot)
        try:
            pid, ticks, pidfd = self.spare.fork(m.Fork("coordinator", 0, slot))
        except ShmlogError as exc:
            log(f"no standby: {exc}")
            self.standby_asked_ns = monotonic_ns() + NS  # trying holds up the loop; _tick() asks again
            return
        listed = self.memory.slot_of(pid, ticks)
        if listed == 0 and not self.memory.lives(slot):  # else it lists itself, elsewhere: a last resort was as quick to take this entry
            self.memory.write_process(slot, lib.SL_ROLE_STANDBY, 0, pid, ticks, lib.SL_PROCESS_UP, 0)
        self._watch_standby(listed or slot, (pid, ticks), pidfd)

    def _watch_standby(self, slot: int, standby: tuple[int, int], pidfd: int) -> None:
        if self.standby_pidfd >= 0:
            self.selector.unregister(self.standby_pidfd)
            os.close(self.standby_pidfd)
        self.standby_slot, self.standby, self.standby_pidfd = slot, standby, pidfd
        self.selector.register(pidfd, selectors.EVENT_READ, self._standby_died)

    def _standby_died(self) -> None:
        self.selector.unregister(self.standby_pidfd)
        os.close(self.standby_pidfd)
        self.standby_pidfd = -1
        if not self.memory.lives(self.standby_slot):  # it may have moved, and another one have come there
            self.memory.process_state(self.standby_slot, lib.SL_PROCESS_DEAD)
        log("the standby died")
        # One that dies at once must not be forked again without a pause: then _tick() asks.
        if not self.stopping and monotonic_ns() - self.standby_asked_ns > STANDBY_RETRY_NS:
            self._ask_for_standby()

    # === ending ========================================================================================================

    def _watch_owner(self) -> None:
        """An embedded cluster ends with the program it belongs to, also if that is killed."""
        if not self.view.owner_pid:
            return
        pidfd = proc.watch(self.view.owner_pid, self.view.owner_start_ticks)
        if pidfd is None:
            self._owner_died()
            return
        self.owner_pidfd = pidfd
        self.selector.register(pidfd, selectors.EVENT_READ, self._owner_died)

    def _owner_died(self) -> None:
        if self.owner_pidfd >= 0:
            self.selector.unregister(self.owner_pidfd)
            os.close(self.owner_pidfd)
            self.owner_pidfd = -1
        log(f"the program this cluster belongs to (pid {self.view.owner_pid}) is gone")
        self._begin_shutdown(True, monotonic_ns() + 30 * NS, lambda message: None)

    def _shutdown(self, connection: Connection, message: m.Shutdown, reply: Reply) -> None:
        self._begin_shutdown(message.force, monotonic_ns() + message.timeout_ms * MS, reply)

    def _begin_shutdown(self, force: bool, deadline_ns: int, reply: Reply) -> None:
        """Killed from here to DOWN: the successor finds STOPPING and goes on."""
        if self.stopping:
            self.stopping.replies.append(reply)
            self.stopping.force |= force
            if not force:
                return
        else:
            self.stopping = Stopping(force, deadline_ns)
            self.stopping.replies.append(reply)
            self.memory.set_state(lib.SL_CLUSTER_STOPPING)
            lib.sl_view_changed(self.control)
        for broker in self.brokers.values():
            if not broker.running:
                broker.stopped = broker.stopped or self.stopping.force
            elif self.stopping.force and self.view.temporary:
                broker.stopped = True  # its data goes anyway
                proc.kill(broker.pidfd)
            elif broker.connection is not None:
                self.connections.send(broker.connection, self._stop_message())
        self._check_stopped()

    def _stop_message(self) -> m.BrokerStop:
        assert self.stopping
        left = max(self.stopping.deadline_ns - monotonic_ns(), 100 * MS)
        return m.BrokerStop(self.stopping.force, left // MS)

    def _broker_stopped(self, connection: Connection, message: m.BrokerStopped, reply: Reply) -> None:
        broker = self._broker_of(connection, message.broker_id, message.broker_epoch)
        reply(m.Done(self.view.version))
        if message.unspilled_bytes and not (self.stopping and self.stopping.force):
            if self.stopping:
                self.stopping.problems[broker.id] = message
                self._refuse_shutdown()
            return
        broker.stopped = self.stopping is not None  # without: SIGTERM by hand; it is started again when it has ended

    def _check_stopped(self) -> None:
        if self.stopping and all(b.stopped and not b.running for b in self.brokers.values()):
            self._finish()

    def _shutdown_timed_out(self) -> None:
        assert self.stopping
        if self.stopping.force:
            for broker in self.brokers.values():
                broker.stopped = True
                if broker.running:
                    log(f"broker {broker.id} did not end in time; killing it")
                    proc.kill(broker.pidfd)
            self.stopping.deadline_ns = monotonic_ns() + 10 * NS
            self._check_stopped()
            return
        late = [b.id for b in self.brokers.values() if b.running or not b.stopped]
        self._refuse_shutdown(m.failure_of(KafkaTimeoutError(f"brokers {late} have not written everything in time; the cluster goes on")))

    def _refuse_shutdown(self, failure: m.Failure | None = None) -> None:
        """Back to UP: what could not be written stays in memory, and everything goes on."""
        assert self.stopping
        stopping, self.stopping = self.stopping, None
        if failure is None:
            count = sum(p.unspilled_bytes for p in stopping.problems.values())
            why = next((p.failure.message for p in stopping.problems.values() if p.failure), "the disk takes no more")
            failure = m.failure_of(
                StorageError(
                    f"{count:,} bytes in memory could not be written to disk ({why}); the cluster goes on",
                    hint="make room and stop it again, or give them up: `shmlog down --force`",
                )
            )
        log(f"not stopping: {failure.message}")
        self.memory.set_state(lib.SL_CLUSTER_UP)
        for broker in self.brokers.values():
            broker.stopped = False
        staying = [b.id for b in self.brokers.values() if b.running]
        self._decide(metadata.renew_epochs(self.view, staying))
        self._start_brokers()
        for reply in stopping.replies:
            reply(failure)

    def _finish(self) -> None:
        """All brokers have ended and everything is safe (or given up). The order: the disk says "clean", memory says DOWN, the others end, memory goes,
        then the reply. Killed before DOWN: the successor starts brokers again and stops them again. Killed after: it finishes the removal."""
        assert self.stopping
        if self.store is not None:
            if not self.stopping.force and not self.store.wait_stored(self.view.version, 5.0):
                error = self.store.error or StorageError("the metadata could not be written within 5 s", path=self.view.data_dirs[0])
                self._refuse_shutdown(m.failure_of(error))
                return
            try:
                self.store.close(self.view)
            except ShmlogError as exc:
                log(f"closing the metadata: {exc}")  # all but the mark "clean" is there; without it the next epochs jump
            self.store = None
        stopping = self.stopping
        self._remove_everything()
        for reply in stopping.replies:
            reply(m.Done(self.view.version))
        self.finished = True

    def _remove_everything(self) -> None:
        self.memory.set_state(lib.SL_CLUSTER_DOWN)
        lib.sl_view_changed(self.control)
        lib.sl_wake_all(self.memory.handle, 0xFFFFFFFF)
        self._end_others()
        view = self.view or self.memory.read_view(self.memory.view_version())
        shm.remove_cluster(self.prefix)
        if view is not None and view.temporary:
            for directory in {*view.data_dirs, view.state_dir}:
                shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def _end_others(self) -> None:
        """The standby holds nothing and is killed; the spare is asked."""
        me = os.getpid()
        for slot in COORDINATOR_SLOTS:
            process = self.control.processes[slot]
            if process.pid and process.pid != me:
                pidfd = proc.watch(process.pid, process.start_ticks)
                if pidfd is not None:
                    proc.kill(pidfd)
                    ended(pidfd, END_TIMEOUT_S)
                    os.close(pidfd)
        self.spare.end()

    _HANDLERS: ClassVar[dict[type, Callable[[Coordinator, Connection, Any, Reply], None]]] = {
        m.Register: _register,
        m.Unregister: _unregister,
        m.CreateTopics: _create_topics,
        m.DeleteTopics: _delete_topics,
        m.DeleteNamespace: _delete_namespace,
        m.CreatePartitions: _create_partitions,
        m.AlterTopicConfigs: _alter_topic_configs,
        m.DeleteRecords: _delete_records,
        m.DescribeCluster: _describe_cluster,
        m.Shutdown: _shutdown,
        m.BrokerReady: _broker_ready,
        m.BrokerApplied: _broker_applied,
        m.BrokerFailed: _broker_failed,
        m.BrokerStopped: _broker_stopped,
        m.Trimmed: _trimmed,
    }
