"""Which binding makes the calls that are made once a record.

"fast" is shmlog._fast, an extension in C for just these calls; "cffi" is Python over cffi, which is complete without it. $SHMLOG_BINDING chooses;
default is "fast" where it was built. Both use the one copy of the C core in shmlog._core, whose addresses shmlog/_ffi.py hands over.

How the two share their code: a class that C reads has its Python form here in the package, with all its methods. `in_c` puts the extension's class of
that name in its place and gives it those methods; Sender and Receiver are bases that add C methods, and take_over() makes these the ones that a
caller finds, while the Python method stays under the name by which C calls it for all but the plain case.
"""

from __future__ import annotations

import os
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, TypeVar

from shmlog.errors import InvalidConfigurationError

BINDINGS = ("fast", "cffi")


def _load() -> Any:
    wanted = os.environ.get("SHMLOG_BINDING") or None
    if wanted not in (None, *BINDINGS):
        raise InvalidConfigurationError(f"SHMLOG_BINDING={wanted}: allowed are {', '.join(BINDINGS)}", key="SHMLOG_BINDING")
    if wanted == "cffi":
        return None
    try:
        from shmlog import _fast
    except ImportError as error:
        if wanted is None:
            return None
        raise InvalidConfigurationError(
            f"SHMLOG_BINDING=fast: this shmlog has no extension ({error})", key="SHMLOG_BINDING", hint="leave it unset: cffi serves all calls"
        ) from error
    return _fast


fast: Any = _load()  # None: cffi
name = "cffi" if fast is None else "fast"

if TYPE_CHECKING:

    class Sender:
        """Base of Producer."""

        _generation: int
        _plain: bool  # no serializers and no partitioner

    class Receiver:
        """Base of Consumer."""

        _generation: int
        _version: int
        _version_at: int
        _busy: int  # the thread that is in a call of the extension; 0 none
        _plain: bool  # no deserializers

elif fast is None:

    class Sender:
        pass

    class Receiver:
        _busy = 0

else:
    Sender = fast.Sender
    Receiver = fast.Receiver

Class = TypeVar("Class", bound=type)


def in_c(python: Class) -> Class:
    """Class decorator: the extension's class of this name, with the methods of this one; this one under cffi."""
    if fast is None:
        return python
    made = getattr(fast, python.__name__)
    for key, value in vars(python).items():
        if key not in ("__init__", "__dict__", "__weakref__") and not isinstance(value, MemberDescriptorType):
            setattr(made, key, value)
    return made  # type: ignore[no-any-return]


def take_over(cls: type, method: str, kept: str, signature: str) -> None:
    """Callers of cls.<method> get the extension's method from now on; it calls the Python one as <kept>."""
    if fast is None:
        return
    python = cls.__dict__[method]
    setattr(cls, kept, python)
    fast.describe(method, f"{method}{signature}\n--\n\n{python.__doc__}")
    delattr(cls, method)
