"""The processes of a cluster by the command line they were started with: also one that is not listed yet, just forked by one that is dead by now."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path


def pids_of(cluster: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes()
            ours = b"shmlog.spare" in command and f'"cluster":"{cluster}"'.encode() in command
            if ours and (path.parent / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(path.parent.name))
    return found


def kill_all(cluster: str) -> bool:
    """Kills what lives of it, and waits for their ends; True: nobody did. Those that live start others meanwhile, so it is called until then. (One that
    is ending has no command line any more: pids_of() does not know it, and verify takes it for alive.)"""
    pids = pids_of(cluster)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                select.select([fd], [], [])
            finally:
                os.close(fd)
    return not pids
