"""A cluster that belongs to a program: `with Cluster(brokers=3) as cluster: ...`.

Own processes, an own name, and temporary data unless data_dir= is given. It ends with the block, or with stop(), or with the program however that ends:
the coordinator holds a pidfd of it. If the program and all processes of the cluster are killed together, the next embedded start (or `shmlog doctor
--fix`) removes what is left.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from shmlog import config, errors, lifecycle, proc, shm
from shmlog._ffi import lib

_ROLES = {
    "coordinator": lib.SL_ROLE_COORDINATOR,
    "standby": lib.SL_ROLE_STANDBY,
    "spare": lib.SL_ROLE_SPARE,
    "broker": lib.SL_ROLE_BROKER,
}


class Cluster:
    """Runs when the constructor returns.

    data_dir   where its data lies and stays; None: a temporary directory that goes with the cluster
    config     cluster configs, as `shmlog up -c`
    name       its name; None: one that no other cluster has
    """

    def __init__(self, brokers: int = 1, *, data_dir: str | None = None, config: Mapping[str, Any] | None = None, name: str | None = None) -> None:
        self._pid = os.getpid()
        self._stopped = False
        self._outer: str | None = None
        self._entered = False
        self.name = name or f"e{self._pid}-{secrets.token_hex(4)}"
        lifecycle.remove_orphans()
        self.data_dir = data_dir or tempfile.mkdtemp(prefix="shmlog-")
        try:
            started = lifecycle.start_cluster(
                self.name,
                brokers,
                [self.data_dir],
                config,
                owner=(self._pid, proc.start_ticks(self._pid)),
                temporary=data_dir is None,
            )
            if not started:
                raise errors.IllegalStateError(
                    f"a cluster {self.name!r} runs already, and not as this program's", hint="leave out name=, or take another"
                )
        except BaseException:
            self._stopped = True
            if data_dir is None:
                shutil.rmtree(self.data_dir, ignore_errors=True)
            raise

    @property
    def address(self) -> str:
        """For bootstrap_servers=; inside the block it is the default."""
        return str(config.Address(self.name))

    def namespace(self, name: str) -> str:
        """An address with topics and groups of its own in this cluster. Costs nothing: a namespace begins with its first topic."""
        return str(config.Address(self.name, config.namespace_name(name)))

    def pid(self, role: str, id: int = 0) -> int:
        """Of the process that has this role now: coordinator, standby, spare or broker (with its id). 0: none lives at the moment."""
        return self._process(role, id)[0]

    def kill(self, role: str, id: int = 0, number: int = signal.SIGKILL) -> int:
        """Sends a signal, SIGKILL unless another is named, to the process that has this role now; returns its pid. For tests."""
        pid, start_ticks = self._process(role, id)
        pidfd = proc.watch(pid, start_ticks)
        if pidfd is None:
            raise errors.IllegalStateError(f"{role} {id} of cluster {self.name} does not live at the moment")
        try:
            proc.kill(pidfd, number)
        finally:
            os.close(pidfd)
        return pid

    def _process(self, role: str, id: int) -> tuple[int, int]:
        if role not in _ROLES:
            raise errors.IllegalArgumentError(f"{role!r} is not a role: {', '.join(_ROLES)}")
        _, control = shm.read_control(shm.prefix(self.name))
        for process in control.processes if control is not None else ():
            if process.role == _ROLES[role] and process.id == id and proc.alive(process.pid, process.start_ticks):
                return process.pid, process.start_ticks
        return 0, 0

    def stop(self) -> None:
        """Ends the cluster. Data in data_dir= is written first, as by `shmlog down`; temporary data goes."""
        if self._stopped or self._pid != os.getpid():
            return  # a forked child has not started it
        temporary = (view := lifecycle.view_of(self.name)) is not None and view.temporary
        lifecycle.stop_cluster(self.name, force=temporary)
        self._stopped = True
        if temporary:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def __enter__(self) -> Cluster:
        self._outer = os.environ.get("SHMLOG_CLUSTER")
        self._entered = True
        os.environ["SHMLOG_CLUSTER"] = self.name
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        if self._entered:
            self._entered = False
            if self._outer is None:
                os.environ.pop("SHMLOG_CLUSTER", None)
            else:
                os.environ["SHMLOG_CLUSTER"] = self._outer
        self.stop()

    def __repr__(self) -> str:
        return f"<Cluster {self.address}{' stopped' if self._stopped else ''}>"
