"""Who a process is: pid and start ticks together (a pid alone is given again), and what /proc says of it.

`watch()` is the way to a death certificate: a pidfd of exactly that process, which becomes readable when it has ended.
"""

from __future__ import annotations

import os
import signal

STOPPED = ("T", "t")  # stopped by a signal, or by a debugger
ENDED = ("Z", "X", "x", "")


def stat(pid: int) -> tuple[str, int]:
    """State letter and start ticks (fields 3 and 22 of /proc/<pid>/stat); ("", 0) if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name (field 2) may hold anything, a closing bracket too: count from the last one.
            fields = file.read().rpartition(b") ")[2].split(None, 20)
        return fields[0].decode(), int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0


def start_ticks(pid: int) -> int:
    return stat(pid)[1]


def alive(pid: int, ticks: int) -> bool:
    """Whether exactly this process runs (stopped counts as running, a zombie does not)."""
    if pid <= 0:
        return False
    state, found = stat(pid)
    return found == ticks and state not in ENDED


def stopped(pid: int, ticks: int) -> bool:
    state, found = stat(pid)
    return found == ticks and state in STOPPED


def watch(pid: int, ticks: int) -> int | None:
    """A pidfd of exactly this process, or None if it has ended."""
    if pid <= 0:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    if alive(pid, ticks):  # checked after the open: from here on the fd cannot come to name another process
        return pidfd
    os.close(pidfd)
    return None


def kill(pidfd: int, number: int = signal.SIGKILL) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass


def set_name(name: str) -> None:
    """What `ps -o comm` and `top` show; 15 bytes at most."""
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(name[:15])
    except OSError:
        pass  # a name is a convenience
