"""Copies of partitions at other brokers, over ZeroMQ (ipc): what a leader sends, and what a follower does with it.

The way of a record: the leader's spill thread has written it to its file (csrc/spill.c) -> this thread reads the frames from there, as they stand, as
a *run* (csrc/replica.c) -> the follower's thread validates the run, appends it to files of its own and acknowledges the end -> the leader's C side
moves the words `spilled`, `high_watermark` and `durable` to what all in-sync replicas have, and wakes who waits. Frames are read from the file also
while they are still in memory: what a follower gets is the one copy that was validated, and one that is far behind and one that is up to date are
served alike.

Follower: Follow(end, epoch of its last file) -> leader: Cut (where the logs part, by leader epochs: KIP-101, KIP-279; again, until they agree) or
Frames, as many as a window of unacknowledged bytes allows -> Ack, Ack, ... Whatever does not fit is answered by a new Follow, which begins a new
session. Messages may be lost, doubled or late: each carries its session (a number of the follower's, never given twice), and of another than the
present one nothing is done. A late Cut would take away what was acknowledged since.

Threads: `Replication.run` owns the sockets and all that stands in `leading` and `following`; the policy thread hands it functions to run (`_do`). A
second thread syncs a follower's files, so that an fdatasync holds up no append; it holds `Following.lock` while it uses a handle."""

from __future__ import annotations

import os
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from shmlog import config, transport
from shmlog import messages as m
from shmlog._ffi import ffi, lib
from shmlog.broker import recovery
from shmlog.clock import MS, NS, monotonic_ns
from shmlog.errors import ShmlogError

RUN_BYTES = 2**20  # of one partition in one message, but for a larger frame
WINDOW_BYTES = 8 * 2**20  # sent to a follower and not acknowledged, of one partition
TICK_NS = 50 * MS
FOLLOW_RETRY_NS = 20 * MS  # a leader that is not one yet, or an answer that does not come
ANSWER_NS = 1 * NS
FAILED_RETRY_NS = 200 * MS  # a disk that refused
ADVANCED_MAX = 256
STOP_S = 5.0


# What another process sends is checked by its types: out of these bounds it is nonsense, and dropped.
U32 = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
Session = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
Offset = Annotated[int, msgspec.Meta(ge=0, lt=2**48)]


class Follow(msgspec.Struct, array_like=True, tag=True):
    session: Session
    block: U32
    leader_epoch: U32
    end_offset: Offset
    durable_offset: Offset
    last_epoch: U32


class Acked(msgspec.Struct, array_like=True):
    session: Session
    block: U32
    leader_epoch: U32
    end_offset: Offset
    durable_offset: Offset


class Acks(msgspec.Struct, array_like=True, tag=True):
    acks: list[Acked]


class Run(msgspec.Struct, array_like=True):
    """One run; its bytes are a further part of the message. sync: somebody waits for acks=disk. No bytes: only that."""

    session: Session
    block: U32
    leader_epoch: U32
    sync: bool
    bytes: U32


class Frames(msgspec.Struct, array_like=True, tag=True):
    runs: list[Run]


class Cut(msgspec.Struct, array_like=True, tag=True):
    """The leader's log under `epoch` (the last it knows that is not above the follower's) ends at `end_offset`. begin: it has nothing below."""

    session: Session
    block: U32
    epoch: U32
    end_offset: Offset
    begin: bool


class NotLeader(msgspec.Struct, array_like=True, tag=True):
    session: Session
    block: U32


_decoder = msgspec.msgpack.Decoder(Follow | Acks | Frames | Cut | NotLeader)
_encode = msgspec.msgpack.Encoder().encode


class Role(NamedTuple):
    """A replicated partition as the view in force has it."""

    topic: str
    topic_id: bytes
    number: int
    block: int
    leader: int
    leader_epoch: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    min_insync: int
    directory: str
    file_roll_bytes: int
    flush_ns: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.number}"


def parting(files: Sequence[tuple[int, int]], end_offset: int, follower_end: int, last_epoch: int) -> tuple[int, int, bool] | None:
    """Where a follower's log (its end, and the leader epoch of its last file) parts from the leader's, given the leader's files as (base offset, leader
    epoch) in log order, and their end: (epoch, end offset, begin) as in Cut, None where they agree. A follower that does as it is told and asks again
    ends with a prefix of the leader's log after at most as many rounds as there are epochs.

    Two logs that hold an offset under the same leader epoch hold the same record there, because an epoch has one leader.
    """
    files = [file for file in files if file[0] < end_offset]
    first = files[0][0] if files else end_offset
    if follower_end < first:
        return 0, first, True
    epoch = max((e for _, e in files if e <= last_epoch), default=0)
    end = next((base for base, e in files if e > epoch), end_offset)
    if follower_end > end or (epoch != last_epoch and follower_end > first):
        return epoch, min(end, follower_end), False
    return None


class Sender:
    """One follower of one partition led here."""

    def __init__(self, identity: bytes, session: int, fetch: Any, offset: int) -> None:
        self.identity = identity
        self.session = session
        self.fetch = fetch  # sl_fetch
        self.next_offset = offset
        self.acked = offset
        self.durable = 0
        self.wants_sync = False  # it could join the in-sync replicas, if only it had on disk what is durable
        self.unacked: deque[tuple[int, int]] = deque()  # (end offset, bytes) of what is under way
        self.unacked_bytes = 0
        self.stalled_ns = 0  # what it needs next cannot be read here: not before
        self.caught_up_ns = monotonic_ns()

    def ack(self, end_offset: int, durable_offset: int) -> None:
        self.acked = max(self.acked, end_offset)
        self.durable = max(self.durable, durable_offset)
        while self.unacked and self.unacked[0][0] <= end_offset:
            self.unacked_bytes -= self.unacked.popleft()[1]


class Leading:
    def __init__(self, role: Role, end_offset: int) -> None:
        self.role = role
        self.end_offset = end_offset  # of the files here
        self.end_before, self.looked_ns = end_offset, monotonic_ns()
        self.since_ns = self.looked_ns
        self.senders: dict[int, Sender] = {}
        self.asked: tuple[int, ...] = role.isr  # what the coordinator was asked for last
        self.asked_ns = 0
        self.caught_up_ns: dict[int, int] = {}  # of followers that begin again: one that can only begin must not look fresh each time

    def close(self) -> None:
        for sender in self.senders.values():
            lib.sl_fetch_close(sender.fetch)
        self.senders.clear()


class Following:
    def __init__(self, role: Role) -> None:
        self.role = role
        self.lock = threading.Lock()
        self.replica: Any = None  # sl_replica; None: closed
        self.session = 0
        self.streaming = False
        self.leaving = False  # it has lost what it had acknowledged: first out of the in-sync replicas, then on
        self.end_offset = self.durable_offset = 0
        self.last_epoch = 0
        self.asked_ns = 0  # when Follow was sent
        self.retry_ns = 0  # not before
        self.dirty_ns = 0  # first byte that is not synced
        self.sync_asked = False
        self.said = ""

    def close(self) -> None:
        with self.lock:
            if self.replica is not None:
                lib.sl_replica_close(self.replica)
            self.replica = None
            self.streaming = False

    def hand_over(self) -> int | None:
        """Syncs the files; their end, or None: they have to be recovered."""
        with self.lock:
            if self.replica is None or lib.sl_replica_sync(self.replica) < 0:
                return None
            return int(lib.sl_replica_end(self.replica))


class Replication(threading.Thread):
    def __init__(
        self,
        broker: Any,
        cluster: str,
        broker_id: int,
        broker_epoch: int,
        cluster_id: bytes,
        log: Callable[[str], None],
        ask: Callable[[m.IsrChange], None],
        offsets: Callable[[int], tuple[int, int]],
    ) -> None:
        super().__init__(name="shmlog-repl", daemon=True)
        self.broker = broker  # sl_broker
        self.cluster = cluster
        self.broker_id = broker_id
        self.broker_epoch = broker_epoch
        self.cluster_id = cluster_id
        self.log = log
        self.ask = ask  # hands a change of an ISR to the policy thread; any thread
        self.offsets = offsets  # the words high_watermark and durable of a block; any thread
        self.lag_ns = config.ClusterConfig().replica_lag_time_max_ms * MS
        self.epochs: dict[int, int] = {}  # broker -> its epoch, by the view
        self.leading: dict[int, Leading] = {}
        self.following: dict[int, Following] = {}
        self.ends: dict[int, tuple[int, int]] = {}  # block -> leader epoch and end, told before lead() was
        self.early: dict[int, list[tuple[bytes, int, Follow]]] = {}  # who asked before the view had come here
        self.sessions = monotonic_ns()  # the last one; they grow over the lives of this broker too
        self.commands: deque[Callable[[], None]] = deque()
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.ending = False
        self.tick_ns = 0
        self.acks: dict[int, list[Acked]] = {}  # leader -> what to tell it at the end of this turn
        self.advanced = ffi.new("sl_advanced[]", ADVANCED_MAX)
        self.needed = ffi.new("uint64_t *")
        self.end_out = ffi.new("uint64_t *")
        self.buffer = ffi.new("uint8_t[]", RUN_BYTES + 4096)
        self.to_sync = threading.Condition()
        self.syncer = threading.Thread(target=self._or_end, args=(self._sync_files,), name="shmlog-rsync", daemon=True)
        self.transport = transport.Transport(config.run_dir(cluster), broker_id, broker_epoch)
        self.router = self.transport.router
        self.dealers: dict[int, tuple[int, transport.Socket]] = {}  # leader -> (its epoch, the socket)

    # === called by the policy thread ===================================================================================

    def _do(self, command: Callable[[], None], wait: bool = False) -> None:
        done = threading.Event()
        self.commands.append(command)
        if wait:
            self.commands.append(done.set)
        os.eventfd_write(self.wake, 1)
        if wait:
            done.wait()  # that thread ends with the process

    def brokers(self, epochs: dict[int, int], lag_ms: int) -> None:
        def change() -> None:
            self.epochs = epochs
            for retired in [leader for leader in self.dealers if leader not in epochs]:
                self.dealers.pop(retired)[1].close(0)
            self.lag_ns = lag_ms * MS

        self._do(change)

    def lead(self, role: Role, end_offset: int) -> None:
        """After sl_broker_add() under this epoch; or the same epoch with another ISR."""

        def change() -> None:
            known = self.leading.get(role.block)
            if known is None or known.role.leader_epoch != role.leader_epoch:
                if known is not None:
                    known.close()
                told_epoch, told_end = self.ends.pop(role.block, (0, 0))
                known = self.leading[role.block] = Leading(role, told_end if told_epoch == role.leader_epoch else end_offset)
            known.role = role
            known.asked, known.asked_ns = role.isr, 0
            for left in [follower for follower in known.senders if follower not in role.replicas]:
                lib.sl_fetch_close(known.senders.pop(left).fetch)
            self._count_followers(known)
            out: dict[bytes, tuple[list[Run], list[bytes]]] = {}
            for identity, follower, message in self.early.pop(role.block, ()):
                self._followed(identity, follower, message, out)
            self._send_frames(out)

        self._do(change)

    def follow(self, role: Role) -> None:
        def change() -> None:
            known = self.following.get(role.block)
            if known is not None and (known.role.leader, known.role.leader_epoch) == (role.leader, role.leader_epoch):
                known.role = role
                if known.leaving and self.broker_id not in role.isr:
                    self._cut_to_durable(known)
                return
            fresh = self.following[role.block] = Following(role)
            if known is not None:
                known.close()
                if known.leaving and self.broker_id in role.isr:  # not forgotten over a change of leader
                    fresh.leaving, fresh.durable_offset = True, known.durable_offset
            self._follow(fresh)

        self._do(change)

    def leave(self, block: int) -> int | None:
        """Neither leads nor follows it any more; its files are closed when this returns. The end of a follower's files, if they are whole and
        synced."""
        end: list[int | None] = [None]

        def change() -> None:
            leading, following = self.leading.pop(block, None), self.following.pop(block, None)
            self.early.pop(block, None)
            if leading is not None:
                leading.close()
            if following is not None:
                end[0] = following.hand_over()
                following.close()

        self._do(change, wait=True)
        return end[0]

    def followed(self) -> list[Role]:
        return [f.role for f in list(self.following.values())]

    def end(self) -> None:
        self.ending = True
        os.eventfd_write(self.wake, 1)
        self.join(STOP_S)

    # === the loop ======================================================================================================

    def run(self) -> None:
        self._or_end(self._loop)

    def _or_end(self, body: Callable[[], None]) -> None:
        """A broker that leads and follows without this thread would be worse than none: the coordinator starts another."""
        try:
            body()
        except BaseException:
            self.log(f"replication dies, and the broker with it:\n{traceback.format_exc()}")
            os._exit(1)

    def _loop(self) -> None:
        self.syncer.start()
        replica_fd = lib.sl_broker_replica_eventfd(self.broker)
        poller = transport.Poller()
        poller.register(self.router, transport.POLLIN)
        poller.register(self.wake, transport.POLLIN)
        poller.register(replica_fd, transport.POLLIN)
        watched: dict[int, transport.Socket] = {}
        while not self.ending:
            for leader, socket in list(watched.items()):
                if leader not in self.dealers or self.dealers[leader][1] is not socket:
                    poller.unregister(socket)
                    del watched[leader]
            for leader, (_, socket) in self.dealers.items():
                if leader not in watched:
                    poller.register(socket, transport.POLLIN)
                    watched[leader] = socket
            wait_ms = max(0, self.tick_ns + TICK_NS - monotonic_ns()) // MS + 1
            ready = dict(poller.poll(wait_ms))
            try:
                if self.wake in ready:
                    try:
                        os.eventfd_read(self.wake)
                    except BlockingIOError:
                        pass
                    while self.commands:
                        self.commands.popleft()()
                if replica_fd in ready:
                    self._advance()
                if self.router in ready:
                    self._receive_from_followers()
                for leader, (_, socket) in list(self.dealers.items()):
                    if socket in ready:
                        self._receive_from_leader(leader, socket)
                self._send_acks()
                if monotonic_ns() - self.tick_ns >= TICK_NS:
                    self._tick()
                    self._send_acks()
            except transport.TransportError as exc:
                self.log(f"replication: {exc}")
        with self.to_sync:
            self.to_sync.notify_all()
        self.syncer.join(STOP_S)
        for leading in self.leading.values():
            leading.close()
        for following in self.following.values():
            following.close()
        for _, socket in self.dealers.values():
            socket.close(0)
        self.transport.close()

    # === leading =======================================================================================================

    def _count_followers(self, leading: Leading) -> None:
        """Those in the ISR, and those that are about to be: until the coordinator has decided, both sets must have a record before it is committed."""
        role = leading.role
        counted = sorted({*role.isr, *leading.asked} - {self.broker_id})
        code = lib.sl_broker_followers(self.broker, role.block, role.leader_epoch, counted, len(counted), role.min_insync)
        if code < 0:
            return  # fenced: the next view says who leads
        for follower, sender in leading.senders.items():
            if follower in counted:
                lib.sl_broker_acked(self.broker, role.block, role.leader_epoch, follower, sender.acked, sender.durable)

    def _advance(self) -> None:
        """Files have grown: on to the followers."""
        out: dict[bytes, tuple[list[Run], list[bytes]]] = {}
        for i in range(lib.sl_broker_advanced(self.broker, self.advanced, ADVANCED_MAX)):
            found = self.advanced[i]
            leading = self.leading.get(found.block)
            if leading is None or leading.role.leader_epoch != found.leader_epoch:
                self.ends[found.block] = (found.leader_epoch, found.end_offset)
                continue
            leading.end_offset = found.end_offset
            for sender in leading.senders.values():
                self._push(leading, sender, out, bool(found.sync))
        self._send_frames(out)

    def _push(self, leading: Leading, sender: Sender, out: dict[bytes, tuple[list[Run], list[bytes]]], sync: bool = False) -> None:
        role = leading.role
        runs, parts = out.setdefault(sender.identity, ([], []))
        if sender.stalled_ns and monotonic_ns() < sender.stalled_ns:
            return
        sender.stalled_ns = 0
        while sender.next_offset < leading.end_offset and sender.unacked_bytes < WINDOW_BYTES:
            n = lib.sl_fetch_run(
                sender.fetch, sender.next_offset, leading.end_offset, role.leader_epoch, self.buffer, len(self.buffer), self.needed
            )
            if n == lib.SL_E_TOO_BIG:
                self.buffer = ffi.new("uint8_t[]", int(self.needed[0]) + 4096)
                continue
            if n <= 0:
                if n < 0:
                    self.log(f"{role}: offset {sender.next_offset} cannot be read for a follower: {ffi.string(lib.sl_strerror(n)).decode()}")
                    sender.stalled_ns = monotonic_ns() + ANSWER_NS
                break
            head = ffi.cast("sl_run *", self.buffer)
            sender.next_offset = int(head.end_offset)
            sender.unacked.append((sender.next_offset, n))
            sender.unacked_bytes += n
            runs.append(Run(sender.session, role.block, role.leader_epoch, sync, n))
            parts.append(ffi.buffer(self.buffer, n)[:])
            sync = False
        if len(self.buffer) > 4 * RUN_BYTES and sender.next_offset >= leading.end_offset:
            self.buffer = ffi.new("uint8_t[]", RUN_BYTES + 4096)
        if sync:
            runs.append(Run(sender.session, role.block, role.leader_epoch, True, 0))

    def _send_frames(self, out: dict[bytes, tuple[list[Run], list[bytes]]]) -> None:
        for identity, (runs, parts) in out.items():
            if runs:
                self._send(identity, Frames(runs), parts)

    def _send(self, identity: bytes, message: Any, parts: list[bytes] | None = None) -> None:
        try:
            self.router.send_multipart([identity, _encode(message), *(parts or [])])
        except transport.TransportError:  # EHOSTUNREACH: it is gone; when it is back it asks
            for leading in self.leading.values():
                for follower in [f for f, s in leading.senders.items() if s.identity == identity]:
                    lib.sl_fetch_close(leading.senders.pop(follower).fetch)

    def _receive_from_followers(self) -> None:
        out: dict[bytes, tuple[list[Run], list[bytes]]] = {}
        while True:
            try:
                identity, *parts = self.router.recv_multipart(transport.NOBLOCK)
            except transport.Again:
                break
            try:
                follower = transport.follower_of(identity)
                message = _decoder.decode(parts[0])
            except (ValueError, IndexError, msgspec.MsgspecError) as exc:
                self.log(f"a follower sends nonsense: {exc}")
                continue
            if isinstance(message, Follow):
                self._followed(identity, follower, message, out)
            elif isinstance(message, Acks):
                for ack in message.acks:
                    self._acked(identity, follower, ack, out)
        self._send_frames(out)

    def _followed(self, identity: bytes, follower: int, message: Follow, out: dict[bytes, tuple[list[Run], list[bytes]]]) -> None:
        leading = self.leading.get(message.block)
        if leading is None or leading.role.leader_epoch < message.leader_epoch:
            early = [e for e in self.early.get(message.block, ()) if e[0] != identity]
            self.early[message.block] = [*early, (identity, follower, message)]
            return  # the view has not come here yet, or the partition is just being opened
        if leading.role.leader_epoch > message.leader_epoch or follower not in leading.role.replicas:
            self._send(identity, NotLeader(message.session, message.block))
            return
        role = leading.role
        old = leading.senders.get(follower)
        if old is not None:
            if old.session >= message.session and old.identity == identity:
                return  # late, or sent twice
            leading.caught_up_ns[follower] = old.caught_up_ns
            lib.sl_fetch_close(leading.senders.pop(follower).fetch)
        cut = self._cut_for(leading, message)
        if cut is not None:
            self._send(identity, cut)
            return
        fetch = ffi.new("sl_fetch **")
        if lib.sl_fetch_open(os.fsencode(role.directory), role.number, role.topic_id, fetch) < 0:
            return
        sender = leading.senders[follower] = Sender(identity, message.session, fetch[0], message.end_offset)
        sender.durable = message.durable_offset
        if message.end_offset < leading.end_offset:
            sender.caught_up_ns = leading.caught_up_ns.get(follower, sender.caught_up_ns)
        lib.sl_broker_acked(self.broker, role.block, role.leader_epoch, follower, message.end_offset, message.durable_offset)
        self._push(leading, sender, out)
        runs, _ = out.setdefault(identity, ([], []))
        if not any(run.block == role.block for run in runs):
            runs.append(Run(sender.session, role.block, role.leader_epoch, False, 0))  # it is accepted; nothing to send
        self._consider_isr(leading, monotonic_ns())

    def _cut_for(self, leading: Leading, message: Follow) -> Cut | None:
        """Where the follower's log and this one part. None: they agree up to the follower's end."""
        epochs = [(e.base_offset, e.leader_epoch) for e in recovery.list_files(leading.role.directory)]
        found = parting(epochs, leading.end_offset, message.end_offset, message.last_epoch)
        return None if found is None else Cut(message.session, message.block, *found)

    def _acked(self, identity: bytes, follower: int, ack: Acked, out: dict[bytes, tuple[list[Run], list[bytes]]]) -> None:
        leading = self.leading.get(ack.block)
        sender = leading.senders.get(follower) if leading else None
        known = leading is not None and sender is not None and leading.role.leader_epoch == ack.leader_epoch
        if leading is None or sender is None or not known or sender.identity != identity or sender.session != ack.session:
            self._send(identity, NotLeader(ack.session, ack.block))  # it believes to be served here: it has to ask again
            return
        if lib.sl_broker_acked(self.broker, ack.block, ack.leader_epoch, follower, ack.end_offset, ack.durable_offset) < 0:
            return
        sender.ack(ack.end_offset, ack.durable_offset)
        if sender.acked >= leading.end_offset:
            sender.caught_up_ns = monotonic_ns()
        if follower not in leading.role.isr:
            self._consider_isr(leading, monotonic_ns())
        self._push(leading, sender, out)

    def _consider_isr(self, leading: Leading, now: int) -> None:
        """Who has caught up comes in at once; who has not for replica.lag.time.max.ms goes. Caught up is with what is committed, and on its own disk
        with what is durable: else the next leader might be one that a power cut leaves with less than acks=disk has promised."""
        role = leading.role
        committed, durable = self.offsets(role.block)
        isr = {self.broker_id}
        for follower in role.replicas:
            if follower == self.broker_id:
                continue
            sender = leading.senders.get(follower)
            if follower in role.isr:
                seen = max(sender.caught_up_ns if sender else 0, leading.since_ns)
                if now - seen <= self.lag_ns:
                    isr.add(follower)
            elif sender is not None and sender.acked >= committed and sender.acked >= leading.end_before:
                if sender.durable >= durable:
                    isr.add(follower)
                sender.wants_sync = sender.durable < durable
        wanted = tuple(r for r in role.replicas if r in isr)
        if set(wanted) == set(role.isr) or (wanted == leading.asked and now - leading.asked_ns < ANSWER_NS):
            return
        leading.asked, leading.asked_ns = wanted, now
        self._count_followers(leading)
        self.ask(m.IsrChange(role.block, role.topic_id, role.leader_epoch, wanted, role.isr))

    # === following =====================================================================================================

    def _dealer(self, leader: int) -> transport.Socket | None:
        epoch = self.epochs.get(leader)
        if not epoch:
            return None
        known = self.dealers.get(leader)
        if known is not None and known[0] == epoch:
            return known[1]
        if known is not None:
            known[1].close(0)
        socket = self.transport.dealer(leader, epoch)
        self.dealers[leader] = (epoch, socket)
        return socket

    def _say(self, following: Following, text: str) -> None:
        if text != following.said:  # once, not each time it is tried again
            self.log(f"{following.role}: {text}")
        following.said = text

    def _follow(self, following: Following) -> None:
        """Opens the files if they are not, and asks the leader where to go on."""
        now = monotonic_ns()
        if now < following.retry_ns:
            return
        role = following.role
        following.streaming = False
        if following.leaving:
            self.ask(m.IsrChange(role.block, role.topic_id, role.leader_epoch, ()))
            following.retry_ns = now + FAILED_RETRY_NS
            return
        try:
            if following.replica is None:
                self._open(following)
        except (ShmlogError, OSError) as exc:
            following.retry_ns = now + FAILED_RETRY_NS
            self._say(following, f"cannot be followed: {exc}")
            return
        following.retry_ns = now + FOLLOW_RETRY_NS
        socket = self._dealer(role.leader)
        if socket is None:
            return
        following.asked_ns = now
        self.sessions = following.session = max(self.sessions + 1, monotonic_ns())
        message = Follow(
            following.session, role.block, role.leader_epoch, following.end_offset, following.durable_offset, following.last_epoch
        )
        try:
            socket.send(_encode(message), transport.NOBLOCK)
        except transport.Again:
            pass

    def _open(self, following: Following) -> None:
        role = following.role
        found = recovery.recover(role.directory, None, role.topic_id)
        end = found.end - found.missing  # what was on disk once and is gone is fetched again
        following.end_offset = following.durable_offset = end
        following.last_epoch = found.files[-1].leader_epoch if found.files else 0
        out = ffi.new("sl_replica **")
        code = lib.sl_replica_open(
            os.fsencode(role.directory), role.number, role.topic_id, self.cluster_id, end, following.last_epoch, role.file_roll_bytes, out
        )
        if code < 0:
            raise ShmlogError(f"{role.directory}: {ffi.string(lib.sl_strerror(code)).decode()}")
        with following.lock:
            following.replica = out[0]
            following.dirty_ns = 0

    def _receive_from_leader(self, leader: int, socket: transport.Socket) -> None:
        while True:
            try:
                head, *parts = socket.recv_multipart(transport.NOBLOCK)
            except transport.Again:
                return
            try:
                message = _decoder.decode(head)
            except msgspec.MsgspecError as exc:
                self.log(f"broker {leader} sends nonsense: {exc}")
                continue
            if isinstance(message, Frames):
                at = 0
                for run in message.runs:
                    part = b""
                    if run.bytes:
                        part, at = (parts[at] if at < len(parts) else b""), at + 1
                    self._arrived(leader, run, part)
            elif isinstance(message, Cut):
                self._cut(leader, message)
            elif isinstance(message, NotLeader):
                following = self._of(leader, message.block, message.session)
                if following is not None:
                    following.streaming = False
                    following.asked_ns = 0  # again, soon

    def _of(self, leader: int, block: int, session: int) -> Following | None:
        """Whom a message concerns; None: it is late."""
        following = self.following.get(block)
        if following is None or following.role.leader != leader or following.session != session or following.replica is None:
            return None
        return following

    def _arrived(self, leader: int, run: Run, part: bytes) -> None:
        following = self._of(leader, run.block, run.session)
        if following is None:
            return
        if run.bytes:
            code = lib.sl_replica_append(following.replica, ffi.from_buffer(part), len(part), following.role.leader_epoch, self.end_out)
            following.end_offset = int(self.end_out[0])
            if code == lib.SL_E_RANGE:  # a gap: something was lost on the way
                following.streaming = False
                following.asked_ns = 0
                return
            if code < 0:
                self._refused(following, code)
                return
            if not following.dirty_ns:
                following.dirty_ns = monotonic_ns()
        following.streaming = True
        following.said = ""
        if run.sync and not following.sync_asked:
            following.sync_asked = True
            with self.to_sync:
                self.to_sync.notify()
        self._ack(following)

    def _refused(self, following: Following, code: int) -> None:
        """Damage on the way, or a disk that does not take it: nothing of the run counts; from the recovered end on, again."""
        self._say(following, f"what broker {following.role.leader} sent is not appended: {ffi.string(lib.sl_strerror(code)).decode()}")
        following.close()
        following.retry_ns = monotonic_ns() + FAILED_RETRY_NS

    def _ack(self, following: Following) -> None:
        role = following.role
        self.acks.setdefault(role.leader, []).append(
            Acked(following.session, role.block, role.leader_epoch, following.end_offset, min(following.durable_offset, following.end_offset))
        )

    def _send_acks(self) -> None:
        for leader, acks in self.acks.items():
            socket = self._dealer(leader)
            if socket is not None:
                try:
                    socket.send(_encode(Acks(acks)), transport.NOBLOCK)
                except transport.Again:
                    pass  # the leader is gone; a new one is asked anew
        self.acks.clear()

    def _cut(self, leader: int, message: Cut) -> None:
        following = self._of(leader, message.block, message.session)
        if following is None or following.streaming:
            return
        role = following.role
        before = following.end_offset
        following.close()
        try:
            if message.begin:
                recovery.restart_at(role.directory, message.end_offset)
            else:
                recovery.cut(role.directory, message.epoch, message.end_offset)
        except (ShmlogError, OSError) as exc:
            following.retry_ns = monotonic_ns() + FAILED_RETRY_NS
            self._say(following, f"cannot be cut: {exc}")
            return
        following.retry_ns = 0
        self._follow(following)
        self.log(f"{role}: ended at {before}, goes on at {following.end_offset} of leader epoch {role.leader_epoch}")

    # --- syncing ---

    def _sync_files(self) -> None:
        while not self.ending:
            due = [f for f in list(self.following.values()) if f.replica is not None and self._sync_due(f)]
            for following in due:
                following.sync_asked = False
                following.dirty_ns = 0
                with following.lock:
                    if following.replica is None:
                        continue
                    durable = lib.sl_replica_sync(following.replica)
                if durable < 0:
                    self._do(lambda f=following: self._sync_failed(f))  # type: ignore[misc]
                else:
                    following.durable_offset = max(following.durable_offset, durable)
                    self._do(lambda f=following: self._synced(f))  # type: ignore[misc]
            with self.to_sync:
                if not due and not self.ending:
                    self.to_sync.wait(0.05)

    @staticmethod
    def _sync_due(following: Following) -> bool:
        dirty = following.dirty_ns
        return following.sync_asked or bool(dirty and monotonic_ns() - dirty >= following.role.flush_ns)

    def _synced(self, following: Following) -> None:
        if self.following.get(following.role.block) is following and following.streaming:
            self._ack(following)

    def _sync_failed(self, following: Following) -> None:
        """What lies beyond the last good sync may be anywhere: it is cut away and fetched again."""
        if self.following.get(following.role.block) is not following:
            return
        self._say(following, "fdatasync failed; fetching again what was not synced")
        following.close()
        if self.broker_id in following.role.isr:
            following.leaving = True  # it has acknowledged more than it may have: nobody may elect it for that
        else:
            self._cut_to_durable(following)

    def _cut_to_durable(self, following: Following) -> None:
        following.leaving = False
        durable = following.durable_offset
        try:
            recovery.recover(following.role.directory, durable, following.role.topic_id)
        except (ShmlogError, OSError) as exc:
            self._say(following, f"cannot be cut at {durable}: {exc}")
        following.retry_ns = monotonic_ns() + FAILED_RETRY_NS

    # === now and then ==================================================================================================

    def _tick(self) -> None:
        now = self.tick_ns = monotonic_ns()
        out: dict[bytes, tuple[list[Run], list[bytes]]] = {}
        for leading in self.leading.values():
            for sender in leading.senders.values():
                if sender.acked >= leading.end_before:
                    sender.caught_up_ns = max(sender.caught_up_ns, leading.looked_ns)
            leading.end_before, leading.looked_ns = leading.end_offset, now
            self._consider_isr(leading, now)
            for sender in leading.senders.values():
                self._push(leading, sender, out, sender.wants_sync)  # also what a file that was just being made could not give
                sender.wants_sync = False
        self._send_frames(out)
        for following in self.following.values():
            if not following.streaming and (now - following.asked_ns > ANSWER_NS or following.replica is None):
                self._follow(following)
            elif following.streaming and now - following.asked_ns > ANSWER_NS and self.epochs.get(following.role.leader):
                following.asked_ns = now
                self._ack(following)  # a sign of life, and what a lost Ack would have said
