"""`up`, `down`, `logs` and `run`: a cluster's life as a person at a terminal sees it. The work is done by shmlog.lifecycle."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from shmlog import config, lifecycle, shm
from shmlog.errors import IllegalArgumentError, UnsupportedVersionError
from shmlog.tools import status

LOOK_S = 1.0  # how often a foreground `up` looks whether the cluster was stopped by somebody else
FOLLOW_S = 0.2
TAIL_BYTES = 1 << 20

# --- up and down -------------------------------------------------------------------------------------------------------


def up(name: str, brokers: int | None, data_dirs: Sequence[str] | None, configs: Mapping[str, str]) -> dict[str, Any]:
    """Starts it, and the status afterwards with what happened: "started" is False if it ran already, with these options."""
    began = time.monotonic()
    started = lifecycle.start_cluster(name, brokers, data_dirs, configs)
    return {"started": started, "ready_ms": round((time.monotonic() - began) * 1000, 1), **status.collect(config.Address(name))}


def up_lines(up: dict[str, Any], bold: Callable[[str], str] = str) -> Iterator[str]:
    from shmlog.tools import doctor

    name = up["cluster"]
    other = "" if name == config.DEFAULT_CLUSTER else f" --cluster {name}"
    yield f"{bold(name)} is up" + (f", ready in {up['ready_ms']:.0f} ms" if up["started"] else " already; nothing to do")
    yield f"  address    {up['address']}"
    yield f"  data       {', '.join(up['data_dirs']) or 'memory only (--data none)'}"
    processes = [f"{p['role']}{' ' + str(p['id']) if p['role'] == 'broker' else ''} {p['pid']}" for p in up["processes"] if p["role"] != "client"]
    yield f"  processes  {', '.join(processes)}"
    budget = f"; records may take {status.size(up['shm_budget_bytes'])}" if up["shm_budget_bytes"] else ""
    yield f"  memory     {status.size(up['shm_bytes'])} of /dev/shm{budget}"
    yield f"  stop       shmlog down{other}"
    if up["started"]:
        for finding in [doctor.shm_size(), *doctor.remove_ipc()]:
            if finding.level != doctor.OK:
                yield f"  ! {finding.what}; {finding.fix}"


def down(name: str, *, wipe: bool, force: bool, timeout: float, data_dirs: Sequence[str] = ()) -> dict[str, Any]:
    stopped = lifecycle.stop_cluster(name, force, wipe, timeout=timeout, data_dirs=data_dirs)
    return {"cluster": name, "stopped": stopped, "wiped": wipe}


def down_line(result: dict[str, Any]) -> str:
    what = "is down" if result["stopped"] else "was down already"
    return f"{result['cluster']} {what}" + ("; its data is removed" if result["wiped"] else "")


class _Ended(Exception):
    """SIGTERM came."""


def stay(name: str, begin: Callable[[], None]) -> None:
    """`up --foreground`: begin() starts and announces it; then until Ctrl-C or SIGTERM, at whatever moment they come, and an orderly shutdown. Or until
    somebody else has stopped it."""

    def ended(number: int, frame: object) -> None:
        raise _Ended

    before = signal.signal(signal.SIGTERM, ended)
    try:
        begin()
        while lifecycle.is_up(name) or shm.names(shm.prefix(name)):
            time.sleep(LOOK_S)  # a signal ends it at once
        return
    except (_Ended, KeyboardInterrupt) as exc:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough
        lifecycle.stop_cluster(name)
        if isinstance(exc, KeyboardInterrupt):
            raise
    finally:
        signal.signal(signal.SIGTERM, before)


# --- run ---------------------------------------------------------------------------------------------------------------


def run(name: str, role: str) -> int:
    """One process in the foreground. A coordinator waits as a standby while there is an active one, and starts the rest otherwise."""
    if role == "gateway":
        raise UnsupportedVersionError("the gateway for Kafka's own clients comes with a later version of shmlog")
    if role != "coordinator":
        raise IllegalArgumentError(
            f"{role!r} is nothing that runs on its own",
            hint="`shmlog run coordinator` starts (or stands by for) all; `shmlog up --foreground` stays with it",
        )
    from shmlog.coordinator import server
    from shmlog.messages import StartOptions

    return server.main(StartOptions(cluster=config.cluster_name(name), state_dir=config.state_dir(name)), 0, -1)


# --- logs --------------------------------------------------------------------------------------------------------------


def log_directory(name: str) -> str:
    view = lifecycle.view_of(name)
    return os.path.join(view.state_dir if view is not None else config.state_dir(name), "logs")


def log_lines(name: str, role: str | None, count: int, follow: bool) -> Iterator[tuple[str, str]]:
    """(log, line) of each log whose name begins with the role; the log is "" where there is only one. follow: as they come, for ever."""
    directory = log_directory(name)
    try:
        names = sorted(entry for entry in os.listdir(directory) if entry.endswith(".log"))
    except FileNotFoundError:
        names = []
    roles = [entry.removesuffix(".log") for entry in names]
    if not roles:
        raise IllegalArgumentError(f"there are no logs in {directory}", hint="`shmlog up` starts a cluster")
    wanted = [r for r in roles if role is None or r == role or r.rpartition("-")[0] == role]
    if not wanted:
        raise IllegalArgumentError(f"there is no log of {role!r}; there are {', '.join(roles)}")
    tails = {r: _Tail(os.path.join(directory, f"{r}.log"), count) for r in wanted}
    shown = dict.fromkeys(wanted, "") if len(wanted) == 1 else {r: r for r in wanted}
    try:
        while True:
            for r, tail in tails.items():
                for line in tail.lines():
                    yield shown[r], line
            if not follow:
                return
            time.sleep(FOLLOW_S)
    finally:
        for tail in tails.values():
            tail.file.close()


class _Tail:
    """The last lines of a file, then what is added to it; begins anew when the file is replaced."""

    def __init__(self, path: str, count: int) -> None:
        self.path = path
        self.file = open(path, "rb")  # noqa: SIM115 (it stays open for as long as it is followed)
        size = os.fstat(self.file.fileno()).st_size
        self.file.seek(max(0, size - TAIL_BYTES))
        *lines, self.rest = self.file.read().split(b"\n")  # a line that is not finished waits for its end
        self.pending = lines[max(0, len(lines) - count) :]

    def lines(self) -> Iterator[str]:
        for line in self.pending:
            yield line.decode(errors="replace")
        self.pending = []
        while True:
            data = self.rest + self.file.read()
            *lines, self.rest = data.split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
            try:
                status = os.stat(self.path)
            except FileNotFoundError:
                return
            if status.st_ino == os.fstat(self.file.fileno()).st_ino:
                return
            self.file.close()
            self.file = open(self.path, "rb")  # noqa: SIM115
