"""What a cluster looks like, from shared memory and files alone: no process is asked, so it works when all of them are dead.

`collect()` gives the object of `status --json` (format 1), `lines()` the same for a person, `problems()` what `--check` complains about.
When the shared memory is gone (`down`, a reboot) the metadata comes from a copy of cluster.sqlite3 and the offsets from the segment files.

Everything read here was written by others and may change while it is read: the metadata is an immutable snapshot, each partition's offsets are read
in an order in which they agree with each other, and what cannot be read is said in the place where it is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from shmlog import config, messages, proc, shm
from shmlog._ffi import check, ffi, lib
from shmlog.errors import DamagedError, NoBrokersAvailable, StorageError, UnknownTopicOrPartitionError
from shmlog.messages import ClusterView, PartitionView, TopicView

FORMAT = 1
VIEW_RETRIES = 1000  # the view is replaced while we look for it: look again

ROLES = {lib.SL_ROLE_COORDINATOR: "coordinator", lib.SL_ROLE_STANDBY: "standby", lib.SL_ROLE_BROKER: "broker", lib.SL_ROLE_SPARE: "spare"}
STORAGE = {
    lib.SL_STORAGE_OK: "ok",
    lib.SL_STORAGE_SHM_FULL: "/dev/shm full",
    lib.SL_STORAGE_DISK_FULL: "disk full",
    lib.SL_STORAGE_DISK_ERROR: "disk error",
    lib.SL_STORAGE_BEHIND: "disk behind",
}
OFFSET_MASK = 2**48 - 1

# --- attaching ---------------------------------------------------------------------------------------------------------


def no_cluster(cluster: str) -> NoBrokersAvailable:
    start = "`shmlog up`" if cluster == config.DEFAULT_CLUSTER else f"`shmlog up --cluster {cluster}`"
    return NoBrokersAvailable(f"no cluster {cluster!r} is running for user {os.getuid()}", hint=f"start it with {start}")


def read_control(cluster: str) -> Any:
    """A private copy of the control object. NoBrokersAvailable if there is none of this boot; the typed error for one that we may not believe."""
    code, control = shm.read_control(shm.prefix(cluster))
    if code in (lib.SL_E_NOENT, lib.SL_E_BOOT, lib.SL_E_HALFMADE):
        raise no_cluster(cluster)
    check(code, f"cluster {cluster!r}: /dev/shm{shm.prefix(cluster)}.control: {ffi.string(lib.sl_strerror(code)).decode()}")
    return control


def read_view(prefix: str, control: Any) -> ClusterView:
    """The metadata in force, by the live control object. NoBrokersAvailable before there is any; DamagedError if it cannot be read."""
    if not control.view_version:
        raise NoBrokersAvailable("the cluster is only just starting, or died at that", hint="`shmlog up` starts it; `shmlog logs` tells")
    for _ in range(VIEW_RETRIES):
        version = int(control.view_version)
        payload = shm.read_view(prefix, version)
        if payload is not None:
            return messages.decode_view(payload)
        if version == int(control.view_version):
            break
    path = shm.DIRECTORY + shm.view_name(prefix, version)
    raise DamagedError(f"{path}, the metadata in force, is missing or damaged", path=path)


class Attached:
    """A cluster's fixed objects mapped, for looking only. Registers nothing, so nobody waits for it."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        self.prefix = shm.prefix(cluster)
        read_control(cluster)  # for its errors
        out = ffi.new("sl_cluster **")
        code = lib.sl_cluster_open(self.prefix.encode(), out)
        if code in (lib.SL_E_NOENT, lib.SL_E_HALFMADE):
            raise no_cluster(cluster)
        check(code, f"cluster {cluster!r}: {ffi.string(lib.sl_strerror(code)).decode()}")
        self.handle = out[0]
        self.control = lib.sl_cluster_control(self.handle)

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *exc: object) -> None:
        lib.sl_cluster_close(self.handle)

    def view(self) -> ClusterView:
        return read_view(self.prefix, self.control)

    def live(self) -> bool:
        """Whether a coordinator or standby of it runs."""
        return any(
            entry.role in (lib.SL_ROLE_COORDINATOR, lib.SL_ROLE_STANDBY) and proc.alive(entry.pid, entry.start_ticks)
            for entry in self.control.processes
        )

    def offsets(self, block: int) -> tuple[int, Any]:
        out = ffi.new("sl_offsets *")
        return int(lib.sl_log_offsets(self.handle, 2**32 - 1, block, out)), out


def last_data(cluster: str) -> ClusterView | None:
    """The metadata of a cluster that is not running, from its default directory; None if there is none."""
    directory = config.state_dir(cluster)
    path = os.path.join(directory, "cluster.sqlite3")
    if not os.path.exists(path):
        return None
    import shutil
    import tempfile

    import msgspec

    from shmlog.coordinator.store import Store

    # A copy, because opening a database whose log was not folded in writes to it; and the cluster might be starting just now.
    with tempfile.TemporaryDirectory(prefix="shmlog-status-") as copy:
        for suffix in ("", "-wal"):
            if os.path.exists(path + suffix):
                shutil.copy(path + suffix, os.path.join(copy, "cluster.sqlite3" + suffix))
        store = Store(copy)
        try:
            loaded = store.load()
        finally:
            store.close()
    return None if loaded is None else msgspec.structs.replace(loaded.view, state_dir=loaded.view.state_dir or directory)


# --- the object --------------------------------------------------------------------------------------------------------


def collect(address: config.Address, topic: str | None = None) -> dict[str, Any]:
    """The object of `status --json`. NoBrokersAvailable if there is neither memory nor data."""
    try:
        with Attached(address.cluster) as attached:
            return _from_memory(attached, address, topic)
    except NoBrokersAvailable:
        view = last_data(address.cluster)
        if view is None:
            raise
        return _from_disk(view, address, topic)


def _head(view: ClusterView, address: config.Address) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "cluster": address.cluster,
        "cluster_id": view.cluster_id.hex(),
        "address": str(address),
        "data_dirs": list(view.data_dirs),
        "state_dir": view.state_dir,
        "layout_version": int(lib.SL_LAYOUT_VERSION),
        "config": dict(view.config),
    }


def _from_memory(attached: Attached, address: config.Address, topic: str | None) -> dict[str, Any]:
    view = attached.view()
    control = attached.control
    topics = [_topic(attached, view, t, address.namespace) for t in _wanted(view, address.namespace, topic)]
    return {
        **_head(view, address),
        "running": attached.live(),
        "state": {lib.SL_CLUSTER_STARTING: "starting", lib.SL_CLUSTER_UP: "up", lib.SL_CLUSTER_STOPPING: "stopping"}.get(control.cluster_state, "down"),
        "coordinator_epoch": int(control.coordinator_epoch),
        "boot_counter": int(control.boot_counter),
        "view_version": view.version,
        "processes": [*_processes(control, view), *_clients(attached)],
        "topics": topics,
        "groups": [],
        "shm_bytes": shm.used_bytes(attached.prefix),
        "shm_budget_bytes": int(control.memory_max_bytes),
        "shm_free_bytes": shm.free_bytes(),
        "disk_bytes": sum(used_bytes(directory) for directory in (*view.data_dirs, *messages.directories_elsewhere(view).values())),
    }


def _from_disk(view: ClusterView, address: config.Address, topic: str | None) -> dict[str, Any]:
    topics = []
    for t in _wanted(view, address.namespace, topic):
        partitions = []
        for n, p in enumerate(t.partitions):
            directory = directory_of(view, t, n)
            start, end = file_offsets(directory)
            ends = dict.fromkeys(("last_stable_offset", "high_watermark", "log_end_offset", "durable_offset"), end)
            followers = _followers(view, t, n, end)
            partitions.append(
                _partition_object(n, p, directory, log_start_offset=start, **ends, followers=followers, disk_bytes=used_bytes(directory))
            )
        topics.append(_topic_object(t, address.namespace, partitions))
    return {
        **_head(view, address),
        "running": False,
        "state": "down",
        "coordinator_epoch": view.coordinator_epoch,
        "boot_counter": view.boot_counter,
        "view_version": view.version,
        "processes": [],
        "topics": topics,
        "groups": [],
        "shm_bytes": 0,
        "shm_budget_bytes": 0,
        "shm_free_bytes": shm.free_bytes(),
        "disk_bytes": sum(used_bytes(directory) for directory in (*view.data_dirs, *messages.directories_elsewhere(view).values())),
    }


def _wanted(view: ClusterView, namespace: str, topic: str | None) -> list[TopicView]:
    """Topics by name; within a namespace only its own, otherwise all with their internal names."""
    if topic is not None:
        found = view.topics.get(messages.internal_name(namespace, topic))
        if found is None:
            raise UnknownTopicOrPartitionError(f"there is no topic {topic!r} in cluster {view.name!r}", topic=topic)
        return [found]
    start = f"{namespace}/" if namespace else ""
    return [view.topics[name] for name in sorted(view.topics) if name.startswith(start)]


def _processes(control: Any, view: ClusterView) -> Iterator[dict[str, Any]]:
    """In the order of ROLES: who leads comes first."""
    order = list(ROLES)
    entries = [entry for entry in control.processes if entry.role in ROLES]
    for entry in sorted(entries, key=lambda entry: (order.index(entry.role), entry.id)):
        role = ROLES[entry.role]
        if not entry.pid:
            continue
        state = _state(entry.pid, entry.start_ticks)
        # A broker that went down orderly leaves its entry; one that is wanted and not there is dead.
        if state == "dead" and role == "broker" and entry.id not in view.brokers:
            continue
        if state == "up" and role == "coordinator":
            state = "active"
        yield {
            "role": role,
            "id": int(entry.id),
            "pid": int(entry.pid),
            "state": state,
            "broker_epoch": int(entry.broker_epoch),
            "starting": entry.state == lib.SL_PROCESS_STARTING,
            **({"retiring": view.brokers[entry.id].retiring} if role == "broker" and entry.id in view.brokers else {}),
        }


def _state(pid: int, ticks: int) -> str:
    letter, found = proc.stat(pid)
    if found != ticks or letter in proc.ENDED:
        return "dead"
    return "stopped" if letter in proc.STOPPED else "up"


def _clients(attached: Attached) -> Iterator[dict[str, Any]]:
    """Processes that are registered and not the cluster's own, by their rows."""
    rows: dict[tuple[int, int], list[int]] = {}
    for index in range(lib.sl_cluster_rows_used(attached.handle)):
        row = lib.sl_cluster_row(attached.handle, index)
        if row and row.state == lib.SL_ROW_LIVE and row.kind in (messages.KIND_PRODUCER, messages.KIND_CONSUMER, messages.KIND_TOOL):
            rows.setdefault((int(row.pid), int(row.start_ticks)), []).append(index)
    for n, ((pid, ticks), indexes) in enumerate(sorted(rows.items())):
        yield {"role": "client", "id": n, "pid": pid, "state": _state(pid, ticks), "broker_epoch": 0, "rows": len(indexes)}


def _topic(attached: Attached, view: ClusterView, topic: TopicView, namespace: str) -> dict[str, Any]:
    partitions = []
    for n, p in enumerate(topic.partitions):
        words = lib.sl_cluster_partition(attached.handle, p.block)
        code, offsets = attached.offsets(p.block)
        more: dict[str, Any] = {
            "log_start_offset": int(offsets.log_start),
            "last_stable_offset": int(offsets.last_stable),
            "high_watermark": int(offsets.high_watermark),
            "log_end_offset": int(offsets.end),
            "durable_offset": int(offsets.durable),
            "spilled_offset": int(offsets.spilled),
        }
        if code < 0:
            more["error"] = ffi.string(lib.sl_strerror(code)).decode()
        if words:
            buffers = [int(word) & 0xFFFFFFF for word in words.dir]
            more["shm"] = [f"{attached.prefix}.s{buffer}" for buffer in buffers if buffer]
            more["shm_bytes"] = int(words.ring_bytes)
            more["dropped_records"] = int(words.dropped_records)
            more["storage"] = STORAGE.get(words.storage_state, "?")
            if words.storage_state:
                more["storage_needed_bytes"] = int(words.storage_needed_bytes)
                more["storage_free_bytes"] = int(words.storage_free_bytes)
                more["storage_errno"] = int(words.storage_errno)
            if words.last_append_ns:
                more["last_append_ms"] = int(words.last_append_ns) // 1_000_000
        directory = directory_of(view, topic, n)
        more["followers"] = _followers(view, topic, n, int(offsets.end))
        more["disk_bytes"] = used_bytes(directory) if directory else 0  # not words.disk_bytes: that counts what was written since the memory was made
        partitions.append(_partition_object(n, p, directory, **more))
    return _topic_object(topic, namespace, partitions)


def _followers(view: ClusterView, topic: TopicView, n: int, end: int) -> list[dict[str, Any]]:
    """The other replicas, by what their files hold: what a follower has acknowledged only its leader knows, and it is asked for nothing. `end` was read
    before, so a lag may already be made good, and is never less than it was."""
    p = topic.partitions[n]
    leader = p.leader if p.leader != messages.NO_LEADER else p.replicas[0]
    found = []
    for replica in p.replicas:
        directory = directory_of(view, topic, n, replica)
        if replica == leader or not directory:
            continue
        try:
            mine = max(file_offsets(directory)[1], _checkpoint(directory))
        except OSError:
            mine = 0  # its disk is not there
        found.append({"broker": replica, "in_sync": replica in p.isr, "end_offset": mine, "lag": max(0, end - mine), "dir": directory})
    return found


def _checkpoint(directory: str) -> int:
    """Where a log begins of which retention has removed every file."""
    from shmlog.broker.recovery import read_checkpoint

    try:
        return read_checkpoint(directory)
    except StorageError:
        return 0  # damaged: `verify` says so


def _partition_object(n: int, p: PartitionView, directory: str, **more: Any) -> dict[str, Any]:
    return {
        "partition": n,
        "leader": None if p.leader == messages.NO_LEADER else p.leader,
        "leader_epoch": p.leader_epoch,
        "replicas": list(p.replicas),
        "isr": list(p.isr),
        "adding_replicas": list(p.adding),
        "removing_replicas": list(p.removing),
        "shm": [],
        "dir": directory or None,
        **more,
    }


def _topic_object(topic: TopicView, namespace: str, partitions: list[dict[str, Any]]) -> dict[str, Any]:
    name = topic.name[len(namespace) + 1 :] if namespace else topic.name
    return {"name": name, "topic_id": topic.topic_id.hex(), "config": dict(topic.config), "partitions": partitions}


def directory_of(view: ClusterView, topic: TopicView, n: int, broker_id: int | None = None) -> str:
    """Where the files of a partition lie at its leader (or first replica, or `broker_id`); "" for memory only."""
    if topic.config.get("shmlog.spill", "true").lower() == "false":
        return ""
    p = topic.partitions[n]
    if broker_id is None:
        broker_id = p.leader if p.leader != messages.NO_LEADER else (p.replicas or (0,))[0]
    broker = view.brokers.get(broker_id)
    return messages.partition_directory(broker.directory, topic.name, n, topic.topic_id) if broker else ""


def log_files(directory: str) -> list[str]:
    """The .log files of a partition, by base offset and leader epoch."""
    try:
        names = [name for name in os.listdir(directory) if name.endswith(".log")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if file_key(name) is not None)


def file_key(name: str) -> tuple[int, int] | None:
    """(base offset, leader epoch) from `<base:020d>-<leader epoch>.log`."""
    base, dash, epoch = name.removesuffix(".log").partition("-")
    return (int(base), int(epoch)) if dash and base.isdigit() and epoch.isdigit() else None


def file_offsets(directory: str) -> tuple[int, int]:
    """Where the files of a directory begin and end."""
    names = log_files(directory) if directory else []
    if not names:
        return 0, 0
    facts = ffi.new("sl_file_facts *")
    first = file_key(names[0])
    assert first is not None
    if lib.sl_file_inspect(directory.encode(), names[-1].encode(), facts) < 0:
        last = file_key(names[-1])
        assert last is not None
        return first[0], last[0]
    return first[0], int(facts.end_offset)


def used_bytes(directory: str) -> int:
    """Disk that a tree takes."""
    total = 0
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return 0
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                total += used_bytes(entry.path)
            else:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            pass  # retention, meanwhile
    return total


# --- judged and shown --------------------------------------------------------------------------------------------------


def problems(status: dict[str, Any]) -> list[str]:
    """What is wrong, a sentence each; nothing: healthy."""
    found = []
    if not status["running"]:
        found.append(f"cluster {status['cluster']} is not running")
    elif status["state"] != "up":
        found.append(f"cluster {status['cluster']} is {status['state']}")
    roles = [p["role"] for p in status["processes"] if p["state"] in ("active", "up")]
    if status["running"] and "coordinator" not in roles:
        found.append("there is no active coordinator")
    if status["running"] and "standby" not in roles:
        found.append("there is no standby")
    for p in status["processes"]:
        if p["role"] != "client" and p["state"] in ("dead", "stopped"):
            found.append(f"{_process_name(p)} (pid {p['pid']}) is {p['state']}")
        elif p.get("starting"):
            found.append(f"{_process_name(p)} (pid {p['pid']}) is starting")
    for t in status["topics"]:
        for p in t["partitions"]:
            place = f"{t['name']}-{p['partition']}"
            if p["leader"] is None:
                found.append(f"{place} has no leader")
            if "error" in p:
                found.append(f"{place}: {p['error']}")
            if p.get("storage", "ok") != "ok":
                found.append(f"{place}: {_storage(p)}")
            if any(r not in p["isr"] for r in p["replicas"] if r not in p["adding_replicas"]):
                behind = "".join(f"; {_behind(f)}" for f in p.get("followers", ()) if not f["in_sync"])
                found.append(f"{place}: {len(p['isr'])} of {len(p['replicas'])} replicas are in sync{behind}")
    return found


def _behind(follower: dict[str, Any]) -> str:
    lag = follower["lag"]
    return f"broker {follower['broker']} " + (f"is {lag:,} record{'s' * (lag != 1)} behind" if lag else "has everything")


def moving(p: dict[str, Any]) -> list[str]:
    """What a move has to do yet."""
    return [f"{verb} {','.join(map(str, p[key]))}" for verb, key in (("adding", "adding_replicas"), ("removing", "removing_replicas")) if p[key]]


def _process_name(p: dict[str, Any]) -> str:
    return f"broker {p['id']}" if p["role"] == "broker" else str(p["role"])


def _shown_state(p: dict[str, Any]) -> str:
    return "starting" if p.get("starting") else "retiring" if p.get("retiring") and p["state"] == "up" else str(p["state"])


def _storage(p: dict[str, Any]) -> str:
    text = str(p["storage"])
    if "storage_needed_bytes" in p and p["storage"] != "disk error":
        text += f": needs {size(p['storage_needed_bytes'])}, {size(p['storage_free_bytes'])} free"
    elif p.get("storage_errno"):
        text += f": {os.strerror(p['storage_errno'])}"
    return text


def size(n: float) -> str:
    """Bytes for people."""
    if n < 1024:
        return f"{int(n)} B"
    for unit in ("KiB", "MiB", "GiB"):
        n /= 1024
        if n < 1024:
            return f"{n:.1f} {unit}" if n < 99.95 else f"{n:.0f} {unit}"
    return f"{n / 1024:.1f} TiB"


def epoch(coordinator_epoch: int) -> str:
    """(boot counter, n): how a coordinator's epoch is composed."""
    return f"{coordinator_epoch >> 32}.{coordinator_epoch & 0xFFFFFFFF}"


def lines(status: dict[str, Any], bold: Any = str, red: Any = str, dim: Any = str) -> Iterator[str]:
    """The view for people; the three functions mark text, on a terminal with colours."""
    wrong = problems(status)
    state = status["state"] if status["running"] or status["state"] == "down" else "all processes are dead; `shmlog up` goes on where they stopped"
    shown = state if status["running"] else red(state)
    yield f"{bold(status['cluster'])}  {shown}  {dim(status['address'])}  coordinator epoch {epoch(status['coordinator_epoch'])}"
    if status["shm_bytes"]:
        budget = f", up to {size(status['shm_budget_bytes'])} for records" if status["shm_budget_bytes"] else ""
        yield f"  memory  {size(status['shm_bytes'])} of /dev/shm{budget}, {size(status['shm_free_bytes'])} free"
    places = ", ".join(status["data_dirs"]) or "memory only (--data none)"
    yield "  disk    " + (f"{size(status['disk_bytes'])} in {places}" if status["data_dirs"] else places)

    if status["processes"]:
        yield ""
        rows = [("PROCESS", "PID", "STATE", "")]
        for p in status["processes"]:
            note = f"{p['rows']} row{'s' * (p['rows'] != 1)}" if "rows" in p else f"epoch {p['broker_epoch']}" if p["role"] == "broker" else ""
            rows.append((_process_name(p) if p["role"] != "client" else "client", str(p["pid"]), _shown_state(p), note))
        yield from table(rows, bold, right=(1,), mark=lambda row: red if row[2] in ("dead", "stopped") else None)

    yield ""
    if status["topics"]:
        replicated = any(len(p["replicas"]) > 1 for t in status["topics"] for p in t["partitions"])
        head = ["TOPIC", "PARTITION", "LEADER", *(["IN SYNC"] if replicated else []), "START", "END", "RECORDS", "NOT DURABLE", "MEMORY", "DISK", ""]
        rows2 = [tuple(head)]
        marked: set[tuple[str, ...]] = set()
        for t in status["topics"]:
            for p in t["partitions"]:
                cells = [t["name"] if p["partition"] == 0 or len(t["partitions"]) == 1 else "", str(p["partition"])]
                cells.append("none" if p["leader"] is None else str(p["leader"]))
                if replicated:
                    cells.append(f"{len(p['isr'])} of {len(p['replicas'])}")
                start, end = p["log_start_offset"], p["log_end_offset"]
                cells += [f"{start:,}", f"{end:,}", f"{end - start:,}"]
                cells.append(f"{max(0, end - max(p['durable_offset'], start)):,}" if p["dir"] else "memory only")
                cells += [size(p.get("shm_bytes", 0)), size(p.get("disk_bytes", 0)) if p["dir"] else "-"]
                notes = [p["error"]] if "error" in p else []
                notes += [_storage(p)] if p.get("storage", "ok") != "ok" else []
                notes += [f"{p['dropped_records']:,} dropped"] if p.get("dropped_records") else []
                wrong_here = bool(notes) or p["leader"] is None
                rows2.append((*cells, "; ".join([*notes, *moving(p)])))
                marked |= {rows2[-1]} if wrong_here else set()
        yield from table(rows2, bold, right=range(1, len(head) - 1), mark=lambda row: red if row in marked else None)
    else:
        yield "no topics yet; producing to one creates it: echo hello | shmlog produce greetings"

    if wrong and status["running"]:
        yield ""
        yield from (red(f"! {line}") for line in wrong)


def topic_lines(topic: dict[str, Any], bold: Any = str) -> Iterator[str]:
    """A topic for `topic describe`."""
    yield f"{bold(topic['name'])}  id {topic['topic_id']}"
    for key, value in sorted(topic["config"].items()):
        yield f"  {key}={value}"
    replicated = any(len(p["replicas"]) > 1 for p in topic["partitions"])  # else the columns repeat the leader, and read as counts
    head = ("REPLICAS", "IN SYNC") if replicated else ()
    rows: list[tuple[str, ...]] = [("  PARTITION", "LEADER", "EPOCH", *head, "START", "COMMITTED", "END", "DURABLE", "MEMORY", "DISK")]
    for p in topic["partitions"]:
        offsets = (f"{p[name]:,}" for name in ("log_start_offset", "high_watermark", "log_end_offset", "durable_offset"))
        replicas = (",".join(map(str, p[name])) for name in ("replicas", "isr") if replicated)
        leader = "none" if p["leader"] is None else str(p["leader"])
        rows.append(
            (str(p["partition"]), leader, str(p["leader_epoch"]), *replicas, *offsets, size(p.get("shm_bytes", 0)), size(p.get("disk_bytes", 0)))
        )
    yield from table(rows, bold, right=range(len(rows[0])), mark=lambda row: None)
    for p in topic["partitions"]:
        yield f"  {p['partition']}: {p['dir'] or 'memory only'}" + (f"  ({', '.join(moving(p))})" if moving(p) else "")
        for f in p.get("followers", ()):
            yield f"     {f['dir']}  {_behind(f)}, {'in sync' if f['in_sync'] else 'not in sync'}"


def table(rows: Any, bold: Any, right: Any, mark: Any) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for n, row in enumerate(rows):
        text = "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        yield bold(text) if n == 0 else (mark(row) or str)(text)
