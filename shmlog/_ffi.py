"""The one import of the C core.

``lib`` and ``ffi`` come from here and from nowhere else; ``check()`` is the one place where a result code becomes an exception. A call that a
signal interrupted returns SL_E_INTR: the caller loops, and Python runs its signal handlers (Ctrl-C) before the next turn.
"""

from __future__ import annotations

from typing import Any

from shmlog import errors
from shmlog._binding import fast
from shmlog._core import ffi, lib

__all__ = ["check", "ffi", "lib", "raise_code"]

_EXCEPTIONS: dict[int, type[errors.ShmlogError]] = {
    getattr(lib, name): exception for name, exception in errors.C_CODES.items()
}


_FOR_FAST = ("sl_append", "sl_reader_poll", "sl_reader_position", "sl_reader_done", "sl_reader_ready", "sl_murmur2", "sl_monotonic_ns")
if fast is not None:
    fast.connect({name: int(ffi.cast("uintptr_t", ffi.addressof(lib, name))) for name in _FOR_FAST})


def raise_code(code: int, message: str | None = None) -> None:
    """Raises the exception of a negative result code. ``message`` should say what, with numbers; the core's own sentence is the fallback."""
    text = message or ffi.string(lib.sl_strerror(code)).decode()
    if code in (lib.SL_E_SYS, lib.SL_E_IO, lib.SL_E_SHM_FULL) and lib.sl_last_errno():
        import os

        text = f"{text} ({os.strerror(lib.sl_last_errno())})"
    raise _EXCEPTIONS.get(code, errors.ShmlogError)(text)


def check(code: int, message: str | None = None) -> Any:
    """Returns ``code`` when it is a result (>= 0), raises otherwise."""
    if code < 0:
        raise_code(code, message)
    return code
