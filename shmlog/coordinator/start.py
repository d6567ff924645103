"""How a coordinator that has become the active one begins: with the memory that a predecessor left, or with fresh memory from disk.

resume() takes memory of this boot with a view in force, and nothing appended is lost; what cannot be used it removes. begin() makes memory anew.
"""

from __future__ import annotations

import os
import selectors

import msgspec

from shmlog import config, shm
from shmlog import messages as m
from shmlog._ffi import check, ffi, lib
from shmlog.clock import monotonic_ns
from shmlog.coordinator import metadata
from shmlog.coordinator.decisions import Decisions
from shmlog.coordinator.memory import Memory, log, open_memory
from shmlog.coordinator.store import Store
from shmlog.errors import IllegalStateError, VersionMismatchError


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
            decisions = _take_over(options, from_up, prefix, selector, memory)
            if decisions is not None:
                return decisions
            memory.close()
    if code not in (lib.SL_E_NOENT, lib.SL_E_BOOT, lib.SL_OK):
        log(f"memory of an earlier run cannot be used: {ffi.string(lib.sl_strerror(code)).decode()}; beginning from disk")
    removed = shm.remove_cluster(prefix)
    if removed:
        log(f"removed {removed} objects of an earlier run")
    return None


def _take_over(
    options: m.StartOptions, from_up: bool, prefix: str, selector: selectors.BaseSelector, memory: Memory
) -> Decisions | None:
    """First the epoch: from here on every decision of a predecessor is older."""
    epoch = memory.raise_epoch()
    view = memory.read_view(memory.view_version())
    if view is None:
        log("the metadata in memory is damaged or gone; beginning from disk")
        return None
    view_wanted = metadata.configured(view, options) if from_up else view
    decisions = Decisions(prefix, selector, memory, epoch, view, fresh=False)
    _open_store(decisions)
    if view_wanted != view:
        decisions.decide(view_wanted)
    return decisions


def _open_store(decisions: Decisions) -> None:
    """Memory of this boot is never older than the store, which follows behind it; so what memory says is written there."""
    view = decisions.view
    if not view.data_dirs:
        return
    store = Store(view.data_dirs[0])
    loaded = store.load()
    if loaded is None:
        store.begin(_boot_id(), view.boot_counter, view)
    elif loaded.view.cluster_id != view.cluster_id:
        store.close()
        raise IllegalStateError(
            f"memory holds cluster {view.cluster_id.hex()}, but {view.data_dirs[0]} holds cluster {loaded.view.cluster_id.hex()}",
            hint="start with the data directory that belongs to the memory, or discard the memory: `shmlog down --force`",
        )
    decisions.run_store(store, loaded.view.version if loaded else view.version)
    assert decisions.store is not None
    decisions.store.submit(view)


def begin(options: m.StartOptions, prefix: str, selector: selectors.BaseSelector) -> Decisions:
    """Fresh memory, from disk or for a new cluster. `control` comes last: until it is READY a successor begins again, which costs a boot number."""
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
