"""The processes of a cluster by the command line they were started with: also one that is not listed yet, just forked by one that is dead by now."""

from __future__ import annotations

import contextlib
import os
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
    """Kills what lives of it; True: nobody did. Those that live start others meanwhile, so it is called until then."""
    pids = pids_of(cluster)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not pids
