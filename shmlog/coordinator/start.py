"""How a coordinator that has become the active one begins: with the memory that a predecessor left, or with fresh memory from disk.

resume() takes memory of this boot, and nothing appended is lost, even when the view in force cannot be read any more; only what cannot be attached to
it removes. begin() makes memory anew, from the database or, when that is lost, from the brokers' directories.
"""

from __future__ import annotations

import os
import selectors

import msgspec

from shmlog import config, directories, proc, shm
from shmlog import messages as m
from shmlog._ffi import check, ffi, lib
from shmlog.clock import monotonic_ns
from shmlog.coordinator import metadata, salvage
from shmlog.coordinator.decisions import Decisions
from shmlog.coordinator.memory import Memory, log, open_memory
from shmlog.coordinator.spare_link import ended
from shmlog.coordinator.store import DatabaseDamaged, Loaded, Store, set_aside
from shmlog.errors import BrokerNotRunningError, IllegalStateError, StorageError, VersionMismatchError

BROKER_END_S = 10.0  # for one that was killed


def resume(options: m.StartOptions, from_up: bool, prefix: str, selector: selectors.BaseSelector) -> Decisions | None:
    """Attaches to memory of this boot that a predecessor left. None: there is none that can be used, and nothing of it is left."""
    code, control = shm.read_control(prefix)
    if code == lib.SL_E_OWNER:
        raise IllegalStateError(f"{shm.object_name(prefix, 'control')} belongs to another user")
    if code == lib.SL_E_VERSION and _boot_id() == bytes(ffi.buffer(control.header.boot_id)):
        raise VersionMismatchError(
            f"cluster {options.cluster!r} left memory of layout {control.header.layout_version}; this shmlog has layout {lib.SL_LAYOUT_VERSION}",
            hint="start and stop it with the version that made it, so that its memory reaches the disk; or discard it: `shmlog down --force`",
            found=control.header.layout_version,
            supported=lib.SL_LAYOUT_VERSION,
        )
    # DOWN: all was safe, only the removal was not finished. `up` then begins anew; a standby finishes it, see Coordinator._activate().
    if code == lib.SL_OK and control.view_version != 0 and not (from_up and control.cluster_state == lib.SL_CLUSTER_DOWN):
        code, memory = open_memory(prefix)
        if memory is not None:
            return _take_over(options, from_up, prefix, selector, memory)
    if code not in (lib.SL_E_NOENT, lib.SL_E_BOOT, lib.SL_OK):
        log(f"MEMORY LOST: {shm.used_bytes(prefix):,} bytes of an earlier run cannot be used: {ffi.string(lib.sl_strerror(code)).decode()}; beginning "
            "from disk")  # fmt: skip
    removed = shm.remove_cluster(prefix)
    if removed:
        log(f"removed {removed} objects of an earlier run")
    return None


def _take_over(
    options: m.StartOptions, from_up: bool, prefix: str, selector: selectors.BaseSelector, memory: Memory
) -> Decisions:
    """First the epoch: from here on every decision of a predecessor is older."""
    epoch = memory.raise_epoch()
    view = memory.read_view(memory.view_version())
    damaged = view is None
    base = view or memory.older_view(memory.view_version())
    data_dirs = base.data_dirs if base else _data_dirs(options)
    store, loaded = None, None
    if data_dirs:
        store, loaded = _open_store(data_dirs[0])
    try:
        ours = bytes(ffi.buffer(memory.control.header.cluster_id))
        if loaded is not None and loaded.view.cluster_id != ours:
            raise IllegalStateError(
                f"memory holds cluster {ours.hex()}, but {data_dirs[0]} holds cluster {loaded.view.cluster_id.hex()}",
                hint="start with the data directory that belongs to the memory, or discard the memory: `shmlog down --force`",
            )
        if view is None:
            view = _salvage(options, memory, base, loaded)
        if store is not None and loaded is None:
            store.begin(_boot_id(), view.boot_counter, view)
    except BaseException:
        if store is not None:
            store.close()
        raise
    decisions = Decisions(prefix, selector, memory, epoch, view, fresh=False)
    if store is not None:
        # Memory of this boot is never older than the store, which follows behind it; so what memory says is written there.
        decisions.run_store(store, loaded.view.version if loaded else view.version)
        assert decisions.store is not None
        decisions.store.submit(view)
    wanted = metadata.configured(view, options) if from_up else view
    if damaged or wanted != view:
        decisions.decide(wanted)
    return decisions


def _salvage(options: m.StartOptions, memory: Memory, base: m.ClusterView | None, loaded: Loaded | None) -> m.ClusterView:
    """The view in force cannot be read: from the newest that can be, in memory or on disk, corrected by what the partition blocks say.

    Brokers are ended first: under which epochs they run stood in the view, and new ones may be given only over their death certificates."""
    version, ours = memory.view_version(), bytes(ffi.buffer(memory.control.header.cluster_id))
    log(f"METADATA DAMAGED: view {version} in memory cannot be read; what was appended is kept, and the view put together again")
    broker_epochs = _end_brokers(memory)
    if loaded is not None and loaded.boot_counter == memory.control.boot_counter and (base is None or loaded.view.version >= base.version):
        base = loaded.view
        log(f"beginning with view {base.version}, from the disk")
    elif base is not None:
        log(f"beginning with view {base.version}, the last one in memory")
    else:
        log("no earlier view can be read, neither in memory nor on disk: beginning with the partition blocks alone")
        bare = metadata.new_cluster(msgspec.structs.replace(options, data_dirs=_data_dirs(options), brokers=None), ours)
        base = msgspec.structs.replace(bare, boot_counter=int(memory.control.boot_counter))
    named = {bytes.fromhex(p.topic.topic_id): p.topic for b in directories.scan(base.data_dirs) for p in b.partitions if len(p.topic.topic_id) == 32}
    found = salvage.from_memory(base, version, memory.blocks(), broker_epochs, named)
    for line in found.said:
        log(f"METADATA DAMAGED: {line}")
    return found.view


def _end_brokers(memory: Memory) -> dict[int, int]:
    """The epochs of all brokers in the process table, which have ended."""
    epochs = {}
    for process in memory.control.processes[metadata.FIRST_BROKER_PROCESS : lib.SL_MAX_PROCESSES]:
        if process.role != lib.SL_ROLE_BROKER or process.id >= metadata.MAX_BROKERS:
            continue
        epochs[int(process.id)] = int(process.broker_epoch)
        pidfd = proc.watch(process.pid, process.start_ticks)
        if pidfd is not None:
            proc.kill(pidfd)
            if not ended(pidfd, BROKER_END_S):
                raise BrokerNotRunningError(f"broker {process.id} (pid {process.pid}) was killed and does not end")
            os.close(pidfd)
    return epochs


def _data_dirs(options: m.StartOptions) -> tuple[str, ...]:
    if options.data_dirs is not None:
        return options.data_dirs
    assert options.state_dir
    return (options.state_dir,)


def _open_store(directory: str) -> tuple[Store, Loaded | None]:
    """For memory that is there and says all that the database should: a damaged one is replaced."""
    try:
        return _load(directory)
    except DatabaseDamaged as exc:
        log(f"DATABASE DAMAGED: {exc}; it is kept as {set_aside(directory)}, and written anew from memory")
        return _load(directory)


def _load(directory: str) -> tuple[Store, Loaded | None]:
    store = Store(directory)
    try:
        return store, store.load()
    except BaseException:
        store.close()
        raise


def _open_or_rebuild(options: m.StartOptions, data_dirs: tuple[str, ...]) -> tuple[Store, Loaded | None]:
    """Without memory the database is all there is; when it is lost, the brokers' directories."""
    damage = None
    try:
        store, loaded = _load(data_dirs[0])
        if loaded is not None:
            return store, loaded
    except DatabaseDamaged as exc:
        damage = exc
    try:
        found = directories.scan(data_dirs)
        # A broker writes its cluster's id before anything else: without one nothing has ever been kept there.
        if not any(b.cluster_id or b.partitions for b in found):
            if damage:
                hint = "move it away to begin a new cluster, or bring the brokers' directories back that belong to it"
                raise StorageError(str(damage), path=damage.path, hint=hint)
            return store, None
        rebuilt = salvage.from_directories(found, options, lambda: os.urandom(16))
    except BaseException:
        if not damage:
            store.close()
        raise
    if damage:
        log(f"DATABASE DAMAGED: {damage}; it is kept as {set_aside(data_dirs[0])}")
        store = Store(data_dirs[0])
    partitions = sum(len(t.partitions) for t in rebuilt.view.topics.values())
    log(f"DATABASE LOST: {store.path} is rebuilt from the brokers' directories: {len(rebuilt.view.topics)} topics, {partitions} partitions")
    for line in rebuilt.said:
        log(f"DATABASE LOST: {line}")
    return store, Loaded(rebuilt.view, b"", rebuilt.view.boot_counter, clean=False)


def begin(options: m.StartOptions, prefix: str, selector: selectors.BaseSelector) -> Decisions:
    """Fresh memory, from disk or for a new cluster. `control` comes last: until it is READY a successor begins again, which costs a boot number."""
    options = msgspec.structs.replace(options, data_dirs=_data_dirs(options))
    store, loaded = None, None
    if options.data_dirs:
        store, loaded = _open_or_rebuild(options, options.data_dirs)
    try:
        boot_counter = loaded.boot_counter + 1 if loaded else 1
        if loaded:
            view = metadata.configured(metadata.relocated(metadata.restarted(loaded.view, loaded.clean), options.data_dirs or ()), options)
        else:
            view = metadata.new_cluster(options, os.urandom(16))
        view = metadata.next_view(view, 0, boot_counter=boot_counter, name=options.cluster)
        if store:
            store.begin(_boot_id(), boot_counter, view)  # durable before the first grant of this boot
        for table in shm.TABLES:
            shm.create_table(prefix, table, cluster_id=view.cluster_id)
        epoch = boot_counter << 32 | 1
        header_bytes = ffi.sizeof("sl_object_header")
        image = ffi.new("sl_control *")
        image.coordinator_epoch = epoch
        image.cluster_state = lib.SL_CLUSTER_STARTING
        image.boot_counter = boot_counter
        image.coordinator_alive_ns = monotonic_ns()
        image.memory_max_bytes = _memory_budget(view)
        shm.create(
            shm.object_name(prefix, "control"),
            lib.SL_KIND_CONTROL,
            ffi.sizeof("sl_control"),
            cluster_id=view.cluster_id,
            body=bytes(ffi.buffer(image))[header_bytes:],
        )
    except BaseException:
        if store:
            store.close()
        raise
    code, memory = open_memory(prefix)
    check(code, "attaching to memory made just now")
    assert memory is not None
    decisions = Decisions(prefix, selector, memory, epoch, view, fresh=True)
    if store:
        decisions.run_store(store, view.version)
    return decisions


def _memory_budget(view: m.ClusterView) -> int:
    given = config.cluster_config(view.config).memory_max_bytes
    return given if given != -1 else max(shm.free_bytes() // 4, 2**20)


def _boot_id() -> bytes:
    boot = ffi.new("uint8_t[16]")
    check(lib.sl_boot_id(boot))
    return bytes(ffi.buffer(boot))
