"""A process's attachment to a running cluster, and the metadata as it reads them: from shared memory, with no request.

One Attachment per process and cluster, shared by all its handles. Whether the metadata changed costs one load (`version_word[0]`); a changed view is
read as a whole from object v<n> and its topics are decoded when somebody asks for them. Attaching maps memory and asks nobody, so it works, or says why
not, at once: with no cluster there it raises NoBrokersAvailable without waiting for anything.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from shmlog import clock, config, errors, proc, shm
from shmlog import messages as m
from shmlog._ffi import check, ffi, lib

START_NS = 10 * clock.NS  # how long attaching waits for a cluster that is just coming up
VIEW_NS = 2 * clock.NS  # how long a view that control names may be unreadable before it counts as damaged
SLICE_NS = 100 * clock.MS

CONTROL_PROCESSES = range(4)  # the spare and the coordinators: while one of them lives the cluster heals by itself


def alive(control: Any) -> bool:
    """Whether the cluster has anybody who keeps it going: exactly the processes of the table, not their pids."""
    for pause in (0.001, 0.004, 0.0):  # an entry is empty for microseconds while it changes hands
        if any(proc.alive(control.processes[i].pid, control.processes[i].start_ticks) for i in CONTROL_PROCESSES):
            return True
        time.sleep(pause)
    return False


def not_running(name: str, why: str, hint: str = "") -> errors.NoBrokersAvailable:
    up = "shmlog up" if name == config.DEFAULT_CLUSTER else f"shmlog up --cluster {name}"
    return errors.NoBrokersAvailable(f"{why}; start it with `{up}`", hint=hint or f"`{up}` starts it")


def lifeless(name: str) -> errors.NoBrokersAvailable:
    return not_running(name, f"no process of cluster {name!r} lives any more", "what was appended is kept: `shmlog up` resumes with it")


class Attachment:
    def __init__(self, name: str, starting: bool = False) -> None:
        """starting: also a cluster that is not up yet or is going down, as its own brokers and `down` need it."""
        self.name = name
        self.prefix = shm.prefix(name)
        self.run_dir = config.run_dir(name)
        self.pid = os.getpid()
        self.users = 0
        self.lock = threading.Lock()  # of the view; held while one is read, never over a wait
        self.identity = shm.identity(shm.object_name(self.prefix, "control"))
        self.handle = self._open()
        self.control = lib.sl_cluster_control(self.handle)
        self.version_word = ffi.addressof(self.control, "view_version")
        self._view: m.LazyClusterView | None = None
        self._topics: dict[str, m.TopicView] = {}
        try:
            self._wait_until_up(starting)
            self.view()
        except BaseException:
            self.close()
            raise

    def _open(self) -> Any:
        out = ffi.new("sl_cluster **")
        code = lib.sl_cluster_open(self.prefix.encode(), out)
        if code == lib.SL_OK:
            return out[0]
        if code == lib.SL_E_VERSION:
            _, control = shm.read_control(self.prefix)
            found = control.header.layout_version if control is not None else None
            raise errors.VersionMismatchError(
                f"cluster {self.name!r} runs with memory layout {found}, this shmlog knows layout {lib.SL_LAYOUT_VERSION}",
                found=found,
                supported=lib.SL_LAYOUT_VERSION,
            )
        if code == lib.SL_E_OWNER:
            raise not_running(self.name, f"the memory of cluster {self.name!r} belongs to another user")
        if code in (lib.SL_E_NOENT, lib.SL_E_BOOT, lib.SL_E_HALFMADE, lib.SL_E_DAMAGED):
            raise not_running(self.name, f"no cluster {self.name!r} is running")
        check(code)
        raise AssertionError

    def _wait_until_up(self, starting: bool) -> None:
        deadline = clock.deadline_ns(START_NS / clock.NS)
        while True:
            changes = lib.sl_get32(ffi.addressof(self.control, "view_changes"))
            state = self.control.cluster_state
            if state == lib.SL_CLUSTER_DOWN:
                raise not_running(self.name, f"cluster {self.name!r} was shut down")
            if not alive(self.control):
                raise lifeless(self.name)
            if self.version_word[0] and (starting or state != lib.SL_CLUSTER_STARTING):
                return
            if clock.monotonic_ns() > deadline:
                raise not_running(self.name, f"cluster {self.name!r} has been starting for {START_NS // clock.NS} s and is not up")
            lib.sl_view_wait(self.handle, changes, clock.monotonic_ns() + SLICE_NS)

    # --- the view ---

    def view(self) -> m.LazyClusterView:
        """The metadata in force."""
        view = self._view
        if view is not None and view.version == self.version_word[0]:
            return view
        return self._read()

    def _read(self) -> m.LazyClusterView:
        deadline = clock.monotonic_ns() + VIEW_NS
        with self.lock:
            while True:
                version = lib.sl_get64(self.version_word)
                if self._view is not None and self._view.version == version:
                    return self._view
                payload = shm.read_view(self.prefix, version)
                if payload is not None:
                    self._topics = {}
                    self._view = m.decode_view_lazily(payload)
                    return self._view
                # Unlinked between the two loads: a later one is in force. If it stays away, the cluster is gone or damaged.
                if lib.sl_get64(self.version_word) != version:
                    continue
                if self.control.cluster_state == lib.SL_CLUSTER_DOWN:
                    raise errors.ClosedError(f"cluster {self.name} was shut down")
                if self._view is not None and shm.identity(shm.object_name(self.prefix, "control")) != self.identity:
                    return self._view  # somebody unlinked our names: what is known stays known (the memory itself is still mapped)
                if clock.monotonic_ns() > deadline:
                    raise errors.BrokerNotRunningError(f"the metadata of cluster {self.name!r} (view {version}) cannot be read")

    def topic(self, name: str) -> m.TopicView | None:
        """By internal name."""
        view = self.view()
        topic = self._topics.get(name)
        if topic is None or view is not self._view:
            raw = view.topics.get(name)
            if raw is None:
                return None
            topic = m.decode_topic(raw)
            with self.lock:
                if self._view is view:
                    self._topics[name] = topic
        return topic

    def wait_view(self, version: int, deadline_ns: int) -> bool:
        """Waits until a view later than `version` is in force. In slices, so that signals get their turn."""
        while self.version_word[0] <= version:
            changes = lib.sl_get32(ffi.addressof(self.control, "view_changes"))
            if self.version_word[0] > version:
                break
            now = clock.monotonic_ns()
            if now >= deadline_ns:
                return False
            if self.control.cluster_state == lib.SL_CLUSTER_DOWN:
                raise errors.ClosedError(f"cluster {self.name} was shut down")
            lib.sl_view_wait(self.handle, changes, min(deadline_ns, now + SLICE_NS))
        return True

    # --- life ---

    def current(self) -> bool:
        """Whether this is still the cluster of that name, for this process."""
        return (
            self.pid == os.getpid()
            and self.control.cluster_state != lib.SL_CLUSTER_DOWN
            and shm.identity(shm.object_name(self.prefix, "control")) == self.identity
        )

    def close(self) -> None:
        if self.handle != ffi.NULL:
            handle, self.handle = self.handle, ffi.NULL
            lib.sl_cluster_close(handle)
