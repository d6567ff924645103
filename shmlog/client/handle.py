"""What Producer, Consumer and Admin have in common: they know a fork, a dead cluster, a deadline and their keywords.

A wait is cut into slices of at most 100 ms: between two of them Python runs its signal handlers (Ctrl-C), and the wait notices that the cluster is
gone. Death is not guessed from a timeout: a coordinator is dead when /proc says that this very process (pid and start ticks) is no more; only a
cluster that has had no living coordinator for 5 s is called dead, because a standby takes over in milliseconds.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from shmlog._binding import fast
from shmlog._ffi import lib
from shmlog.client.cluster_view import alive
from shmlog.errors import BrokerNotRunningError, ClosedError, ForkedProcessError, ShmSpaceError, StorageError

SLICE_NS = 100_000_000
DEAD_NS = 5_000_000_000

# Grows in each forked child. A handle remembers the number it was made under; a closed one remembers -1: one comparison finds both.
generation = 0
CLOSED = -1


def _after_fork() -> None:
    global generation
    generation += 1
    if fast is not None:
        fast.forked(generation)


os.register_at_fork(after_in_child=_after_fork)

# Set when the interpreter ends. From then on finalizers do nothing: what they need is being taken down, and the coordinator gives back a dead
# process's rows. They read it by getattr(handle, "exiting", True), because this module may be gone too.
exiting = False


def _at_exit() -> None:
    global exiting
    exiting = True


atexit.register(_at_exit)


def refuse(made_in: int, what: str) -> NoReturn:
    """Raises why a handle whose generation is not the current one cannot be used."""
    if made_in == CLOSED:
        raise ClosedError(f"this {what} is closed")
    raise ForkedProcessError(f"this {what} was opened before a fork and belongs to the parent process, {os.getppid()}")


def deadline_of(timeout: float | None, default_ms: float) -> int:
    """An absolute monotonic time in ns: `timeout` seconds from now, or default_ms. At most 31 years, for C takes 64 bits."""
    ms = default_ms if timeout is None else timeout * 1000
    if ms != ms:
        raise ValueError("a timeout is a number, not NaN")
    return time.monotonic_ns() + int(max(0, min(ms, 1e12)) * 1_000_000)


# --- the cluster's death -----------------------------------------------------------------------------------------------


def check_cluster(cluster: Any, name: str) -> None:
    """Called between the slices of a wait: raises ClosedError once the cluster was shut down, BrokerNotRunningError once all its coordinators have
    been dead for 5 s. Costs one load while a coordinator's heartbeat is fresh."""
    control = lib.sl_cluster_control(cluster)
    if control.cluster_state == lib.SL_CLUSTER_DOWN:
        raise ClosedError(f"cluster {name} was shut down")
    if time.monotonic_ns() - control.coordinator_alive_ns < DEAD_NS:
        return
    if alive(control):
        return
    raise BrokerNotRunningError(
        f"cluster {name} is no longer running: all its coordinators have been dead for more than {DEAD_NS // 1_000_000_000} s",
        hint=f"`shmlog up --cluster {name}` starts it again; what was appended is kept",
    )


def check_files(cluster: Any, view: Any, topic: str, partition: int) -> None:
    """Raises StorageError for a partition that is not open because its broker cannot take over its files: then nobody knows where the log ends. And
    ShmSpaceError for one that is not open because there is no memory for it."""
    if view is None:
        return
    words = lib.sl_cluster_partition(cluster, view.partitions[partition].block)
    if words.cur and not words.cur >> 40 & 1:
        return
    if words.storage_state == lib.SL_STORAGE_SHM_FULL:
        room = os.statvfs("/dev/shm")
        free = room.f_bavail * room.f_frsize
        raise ShmSpaceError(
            f"{topic}-{partition}: no room in shared memory for its first segment: {free} bytes free", free_bytes=free, topic=topic, partition=partition
        )
    if words.storage_state == lib.SL_STORAGE_DISK_ERROR:
        raise StorageError(
            f"{topic}-{partition}: its broker cannot open its files",
            topic=topic, partition=partition, hint="`shmlog logs broker` says why; the files are kept as they are, and opening is tried again",
        )  # fmt: skip


# --- keywords ----------------------------------------------------------------------------------------------------------


def check_keywords(cls: type, given: Mapping[str, Any], known: Collection[str] | None, without_effect: Collection[str]) -> None:
    """kafka-python's keywords that mean nothing here pass; anything else is a TypeError that names the nearest."""
    for name in given:
        if name in without_effect:
            continue
        import difflib

        near = difflib.get_close_matches(name, [*(known or ()), *without_effect], n=1, cutoff=0.6)
        raise TypeError(f"{cls.__name__}() got an unexpected keyword argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


# kafka-python's keywords about connections: there are none. Common to its three clients.
CONNECTION_KEYWORDS = frozenset(
    {
        "api_version",
        "api_version_auto_timeout_ms",
        "bootstrap_timeout_ms",
        "client_dns_lookup",
        "connections_max_idle_ms",
        "http_connect_proxy_url",
        "kafka_client",
        "max_in_flight_requests_per_connection",
        "metadata_max_age_ms",
        "metric_group_prefix",
        "metric_reporters",
        "metrics_enabled",
        "metrics_num_samples",
        "metrics_sample_window_ms",
        "proxy_url",
        "receive_buffer_bytes",
        "reconnect_backoff_max_ms",
        "reconnect_backoff_ms",
        "request_timeout_ms",
        "retry_backoff_max_ms",
        "retry_backoff_ms",
        "sasl_kerberos_domain_name",
        "sasl_kerberos_name",
        "sasl_kerberos_service_name",
        "sasl_mechanism",
        "sasl_oauth_token_provider",
        "sasl_plain_password",
        "sasl_plain_username",
        "security_protocol",
        "selector",
        "send_buffer_bytes",
        "sock_chunk_buffer_count",
        "sock_chunk_bytes",
        "socket_options",
        "socks5_proxy",
        "ssl_cafile",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_ciphers",
        "ssl_context",
        "ssl_crlfile",
        "ssl_keyfile",
        "ssl_password",
        "wakeup_timeout_ms",
    }
)


# --- serializers -------------------------------------------------------------------------------------------------------


def conversion(given: Any, method: str) -> Any:
    """A serializer or deserializer as a function (topic, value): given is a callable, or an object with kafka-python's serialize(topic, value) or
    deserialize(topic, bytes). None stays None. Null keys and values are not passed to it (as in Java): they stay null."""
    if given is None:
        return None
    bound = getattr(given, method, None)
    if callable(bound):
        return bound
    if not callable(given):
        raise TypeError(f"a {method}r is a callable or has a method {method}(), not {given!r}")
    return lambda topic, value: given(value)
