"""What the active coordinator writes into shared memory: the process table, partition blocks, the view in force.

Each method says what is left if the coordinator is killed in it. Words that others read go through sl_put*, so they become visible in program order.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from shmlog import config, proc, shm
from shmlog import messages as m
from shmlog._ffi import ffi, lib
from shmlog.clock import monotonic_ns
from shmlog.coordinator import metadata, salvage

SPARE_SLOT = 0
COORDINATOR_SLOTS = (1, 2, 3)


def log(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} coordinator {os.getpid()}: {text}", file=sys.stderr, flush=True)


def open_memory(prefix: str) -> tuple[int, Memory | None]:
    """Attaches; (result code, the memory or None)."""
    out = ffi.new("sl_cluster **")
    code = lib.sl_cluster_open(prefix.encode(), out)
    return code, Memory(prefix, out[0]) if code == lib.SL_OK else None


class Memory:
    def __init__(self, prefix: str, handle: Any) -> None:
        self.prefix = prefix
        self.handle = handle
        self.control = lib.sl_cluster_control(handle)

    def close(self) -> None:
        lib.sl_cluster_close(self.handle)

    # --- control ---

    def set_state(self, cluster_state: int) -> None:
        lib.sl_put32(ffi.addressof(self.control, "cluster_state"), cluster_state)

    def beat(self, slot: int, now: int) -> None:
        lib.sl_put64(ffi.addressof(self.control.processes[slot], "heartbeat_ns"), now)

    def raise_epoch(self) -> int:
        """A new coordinator epoch. Dying here costs a number."""
        word = ffi.addressof(self.control, "coordinator_epoch")
        while True:
            seen = int(lib.sl_get64(word))
            if lib.sl_swap64(word, seen, seen + 1):
                return seen + 1

    def view_version(self) -> int:
        return int(lib.sl_get64(ffi.addressof(self.control, "view_version")))

    def lives(self, slot: int) -> bool:
        process = self.control.processes[slot]
        return proc.alive(process.pid, process.start_ticks)

    def slot_of(self, pid: int, start_ticks: int) -> int:
        """Where a coordinator is listed; 0: nowhere."""
        return next((s for s in COORDINATOR_SLOTS if (p := self.control.processes[s]).pid == pid and p.start_ticks == start_ticks), 0)

    def free_slot(self) -> int:
        """0: three coordinators live already."""
        me = os.getpid()
        return next((slot for slot in COORDINATOR_SLOTS if self.control.processes[slot].pid == me or not self.lives(slot)), 0)

    def choose_slot(self, slot: int) -> int:
        """Never an entry in which another one lives: it was forked for the same one by another coordinator, or `up` (which says 1) did not see it.
        A last resort of the spare has none (0). Returns 0 if three live."""
        entry = self.control.processes[slot]
        if slot == 0 or (entry.pid != os.getpid() and proc.alive(entry.pid, entry.start_ticks)):
            return self.free_slot()
        return slot

    def clear_others(self, slot: int, pid: int) -> None:
        """Entries besides its own in which a coordinator stands: its maker may write it into the one it was forked for after it has moved."""
        for other in COORDINATOR_SLOTS:
            process = self.control.processes[other]
            if other != slot and process.pid == pid:
                lib.sl_put32(ffi.addressof(process, "pid"), 0)

    def read_view(self, version: int) -> m.ClusterView | None:
        payload = shm.read_view(self.prefix, version)
        if payload is None:
            return None
        try:
            return m.decode_view(payload)
        except Exception as exc:  # msgspec's errors
            log(f"view {version}: {exc}")
            return None

    def write_process(self, slot: int, role: int, id: int, pid: int, start_ticks: int, state: int, broker_epoch: int) -> None:
        """pid 0 while an entry changes hands: a reader that meets it half-written finds no process there, and never a wrong one."""
        process = self.control.processes[slot]
        if (process.pid, process.start_ticks) != (pid, start_ticks):  # else only its role changes, and it lives all the time
            lib.sl_put32(ffi.addressof(process, "pid"), 0)
        lib.sl_put32(ffi.addressof(process, "role"), role)
        lib.sl_put32(ffi.addressof(process, "id"), id)
        lib.sl_put32(ffi.addressof(process, "state"), state)
        lib.sl_put64(ffi.addressof(process, "start_ticks"), start_ticks)
        lib.sl_put64(ffi.addressof(process, "broker_epoch"), broker_epoch)
        lib.sl_put64(ffi.addressof(process, "heartbeat_ns"), monotonic_ns())
        lib.sl_put32(ffi.addressof(process, "pid"), pid)

    def process_state(self, slot: int, state: int) -> None:
        lib.sl_put32(ffi.addressof(self.control.processes[slot], "state"), state)

    def flip(self, epoch: int, old_version: int, new: m.ClusterView) -> None:
        payload = m.encode_view(new)
        try:
            shm.create_view(self.prefix, new.version, payload, cluster_id=new.cluster_id)
        except FileExistsError:
            shm.unlink(shm.view_name(self.prefix, new.version))  # made by a predecessor that died before its flip
            shm.create_view(self.prefix, new.version, payload, cluster_id=new.cluster_id)
        word = ffi.addressof(self.control, "view_version")
        seen = lib.sl_get64(word)
        # Before the first flip of fresh memory the word is 0.
        if seen not in (old_version, 0) or lib.sl_get64(ffi.addressof(self.control, "coordinator_epoch")) != epoch:
            raise SystemExit(f"coordinator {os.getpid()}: another one is active (view {seen}, mine {old_version}); ending")
        if not lib.sl_swap64(word, seen, new.version):
            raise SystemExit(f"coordinator {os.getpid()}: another one is active; ending")

    def _table(self, table: shm.Table) -> Any:
        first = {
            shm.PARTITIONS: lib.sl_cluster_partition,
            shm.WAITS: lib.sl_cluster_waits,
            shm.ROWS: lib.sl_cluster_row,
            shm.METERS: lib.sl_cluster_meter,
        }[table](self.handle, 0)
        return ffi.cast("sl_table *", ffi.cast("char *", first) - lib.SL_TABLE_HEADER_BYTES)

    def ensure_entries(self, table: shm.Table, entries: int) -> None:
        """Memory first, then `allocated`, then `used`: whoever reads a count may touch what it counts."""
        head = self._table(table)
        allocated = lib.sl_get32(ffi.addressof(head, "allocated"))
        now = shm.grow_table(self.prefix, table, allocated, entries)
        if now != allocated:
            lib.sl_put32(ffi.addressof(head, "allocated"), now)
        if lib.sl_get32(ffi.addressof(head, "used")) < entries:
            lib.sl_put32(ffi.addressof(head, "used"), entries)

    def wipe_block(self, block: int) -> None:
        """For a new topic. Numbers and epochs in `cur` and the directory go on where they were (they never repeat, so that whoever was stopped in
        the old topic's time cannot hit the new one's words); offsets begin at 0. state is FREE meanwhile."""
        self.ensure_entries(shm.PARTITIONS, block + 1)
        self.ensure_entries(shm.WAITS, block + 1)
        p = lib.sl_cluster_partition(self.handle, block)
        lib.sl_put32(ffi.addressof(p, "state"), lib.SL_PARTITION_FREE)
        for word in ("high_watermark", "last_stable", "spilled", "durable", "log_start", "dropped_records"):
            lib.sl_put64(ffi.addressof(p, word), 0)
        start, end = ffi.offsetof("sl_partition", "wanted_bytes"), ffi.offsetof("sl_partition", "dir")
        ffi.memmove(ffi.cast("char *", p) + start, bytes(end - start), end - start)
        start, end = ffi.offsetof("sl_partition", "storage_state"), ffi.sizeof("sl_partition")
        ffi.memmove(ffi.cast("char *", p) + start, bytes(end - start), end - start)

    def write_block(self, view: m.ClusterView, topic: m.TopicView, number: int, first: bool) -> None:
        partition = topic.partitions[number]
        p = lib.sl_cluster_partition(self.handle, partition.block)
        typed = config.topic_config(topic.config)
        if first:
            ffi.memmove(p.topic_id, topic.topic_id, 16)
            lib.sl_put32(ffi.addressof(p, "partition"), number)
            lib.sl_put32(ffi.addressof(p, "leader_epoch"), partition.leader_epoch)  # later ones are stored by whoever opens them
        memory = typed.shmlog_memory_bytes if typed.shmlog_memory_bytes != -1 else self.control.memory_max_bytes
        self._write_flags(p, metadata.partition_flags(view, topic, number), typed.max_message_bytes, first)
        lib.sl_put64(ffi.addressof(p, "memory_bytes"), memory)
        lib.sl_put32(ffi.addressof(p, "bell_process"), view.brokers[partition.leader].process if partition.leader in view.brokers else 0)
        lib.sl_put32(ffi.cast("uint32_t *", ffi.addressof(p, "leader")), partition.leader & 0xFFFFFFFF)
        if first:
            lib.sl_put32(ffi.addressof(p, "state"), lib.SL_PARTITION_LIVE)

    @staticmethod
    def _write_flags(p: Any, flags: int, max_message_bytes: int, first: bool) -> None:
        """Whether readers stop at the high watermark is, after the first time, said by the leader's broker, when it has opened the partition with one
        replica or several (broker/factor.py); both change the word {flags, max_message_bytes} by CAS."""
        word = ffi.cast("uint64_t *", ffi.addressof(p, "flags"))
        while True:
            seen = lib.sl_get64(word)
            now = flags if first else flags & ~metadata.PF_REPLICATED | seen & metadata.PF_REPLICATED
            if lib.sl_swap64(word, seen, max_message_bytes << 32 | now):
                return

    def mark_deleted(self, block: int, topic_id: bytes) -> None:
        p = lib.sl_cluster_partition(self.handle, block)
        if p != ffi.NULL and bytes(ffi.buffer(p.topic_id)) == topic_id and p.state == lib.SL_PARTITION_LIVE:
            lib.sl_put32(ffi.addressof(p, "state"), lib.SL_PARTITION_DELETED)
            lib.sl_wake_all(self.handle, block)

    def reconcile_blocks(self, view: m.ClusterView) -> None:
        """Brings every block up to the view in force: at a start, and after a predecessor that may have died between flip and blocks."""
        for topic in view.topics.values():
            for number, partition in enumerate(topic.partitions):
                p = lib.sl_cluster_partition(self.handle, partition.block)
                known = p != ffi.NULL and p.state == lib.SL_PARTITION_LIVE and bytes(ffi.buffer(p.topic_id)) == topic.topic_id
                if not known:
                    self.wipe_block(partition.block)
                self.write_block(view, topic, number, first=not known)
        for gone in view.deleting:
            self.mark_deleted(gone.block, gone.topic_id)

    def older_view(self, version: int) -> m.ClusterView | None:
        """The last view before `version` that can be believed; at least one is kept."""
        start, ours = shm.view_name(self.prefix, 0)[:-1], bytes(ffi.buffer(self.control.header.cluster_id))
        numbers = (int(name[len(start) :]) for name in shm.names(self.prefix) if name.startswith(start) and name[len(start) :].isdecimal())
        for number in sorted((n for n in numbers if n < version), reverse=True):
            view = self.read_view(number)
            if view is not None and (view.version, view.cluster_id) == (number, ours):
                return view
        return None

    def blocks(self) -> list[salvage.Block]:
        """What every block says that a topic has or had."""
        found = []
        for number in range(lib.sl_cluster_partitions_used(self.handle)):
            p = lib.sl_cluster_partition(self.handle, number)
            topic_id = bytes(ffi.buffer(p.topic_id))
            if p.state == lib.SL_PARTITION_FREE or not any(topic_id) or p.partition >= lib.SL_MAX_PARTITIONS:
                continue
            opened_epoch, leader_epoch = int(p.cur >> 41), int(p.leader_epoch)
            found.append(
                salvage.Block(
                    number,
                    topic_id,
                    int(p.partition),
                    p.state == lib.SL_PARTITION_LIVE,
                    p.state == lib.SL_PARTITION_DELETED,
                    int(p.leader),
                    max(leader_epoch, opened_epoch),
                    opened_epoch >= leader_epoch,  # line 0 has the epoch of its first broker from the decision on
                    int(p.flags),
                    int(p.max_message_bytes),
                    int(p.memory_bytes),
                )
            )
        return found

    def last_epoch(self, block: int) -> int | None:
        """metadata.LastEpoch: a block is free again when no hazard word or pin names it, besides being in no view."""
        p = lib.sl_cluster_partition(self.handle, block)
        if p == ffi.NULL or block >= lib.sl_cluster_partitions_used(self.handle):
            return 0
        for row in range(lib.sl_cluster_rows_used(self.handle)):
            r = lib.sl_cluster_row(self.handle, row)
            if r.state != lib.SL_ROW_FREE and lib.sl_row_names_block(r, block):
                return None
        # `cur` carries the epoch that was last opened; line 0 the one last granted here.
        return max(int(p.leader_epoch), int(p.cur >> 41))
