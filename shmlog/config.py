"""Configs of topics and of the cluster, legal names, addresses and places.

One table: the fields of TopicConfig and ClusterConfig. A field's name is Kafka's key with underscores for dots
(`retention_ms` is `retention.ms`), its metadata says type, unit, what is allowed and what it means. Help, validation, the
documentation and the gateway's DescribeConfigs all read these fields; nothing else lists a config.

Strings are validated here once and are typed ever after. Nothing here does I/O beyond reading environment variables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

from shmlog.errors import InvalidConfigurationError, InvalidTopicError

INT_MAX = 2**31 - 1
LONG_MAX = 2**63 - 1  # Kafka's "never" and "no limit" where -1 is not its word for it
KIB, MIB, GIB = 2**10, 2**20, 2**30
DAY_MS = 24 * 3600 * 1000

# --- the table ---------------------------------------------------------------------------------------------------------


class Allowed(NamedTuple):
    """What a value may be: the test, and the same in words for the error and the help."""

    test: Callable[[Any], bool]
    words: str


def between(low: int, high: int) -> Allowed:
    return Allowed(lambda v: low <= v <= high, f"{low} to {high}")


def at_least(low: int) -> Allowed:
    return Allowed(lambda v: low <= v <= LONG_MAX, f"{low} or more")


def at_least_or_unset(low: int) -> Allowed:
    return Allowed(lambda v: v == -1 or low <= v <= LONG_MAX, f"-1 or at least {low}")


def one_of(*words: str) -> Allowed:
    return Allowed(lambda v: v in words, ", ".join(words))


def some_of(*words: str) -> Allowed:
    return Allowed(lambda v: len(v) > 0 and set(v) <= set(words), "a comma-separated list of " + ", ".join(words))


ANY = Allowed(lambda v: True, "true or false")
FRACTION = Allowed(lambda v: 0 <= v <= 1, "0 to 1")


def _key(kind: str, default: Any, allowed: Allowed, doc: str, unit: str = "") -> Any:
    """A row of the table. kind is Kafka's: boolean, int, long, double, string, list."""
    return field(default=default, metadata={"kind": kind, "allowed": allowed, "doc": doc, "unit": unit})


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """The configs of one topic."""

    # fmt: off
    cleanup_policy: tuple[str, ...] = _key(
        "list", ("delete",), some_of("delete", "compact"),
        "What happens to old records: delete whole files by age and size, compact to the newest record of each key, or both.")
    compression_type: str = _key(
        "string", "producer", one_of("producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"),
        "How batches are kept; producer keeps what was sent.")
    delete_retention_ms: int = _key(
        "long", DAY_MS, at_least(0),
        "How long a compacted topic keeps tombstones, so that a slow reader still sees the deletion.", "ms")
    flush_messages: int = _key(
        "long", LONG_MAX, at_least(1),
        "fdatasync after this many records; the default leaves it to flush.ms and to acks=disk.", "records")
    flush_ms: int = _key(
        "long", 1000, at_least(0),
        "fdatasync at least this often while there is something to sync: what a power cut may cost.", "ms")
    max_compaction_lag_ms: int = _key(
        "long", LONG_MAX, at_least(1),
        "A record is compacted at the latest this long after its append.", "ms")
    max_message_bytes: int = _key(
        "int", 64 * MIB, between(0, 255 * MIB),
        "The largest record, key and headers included, or batch.", "bytes")
    message_timestamp_type: str = _key(
        "string", "CreateTime", one_of("CreateTime", "LogAppendTime"),
        "Whether a record carries its producer's time or that of its append.")
    min_cleanable_dirty_ratio: float = _key(
        "double", 0.5, FRACTION,
        "Compaction starts when this part of the log is not compacted yet.")
    min_compaction_lag_ms: int = _key(
        "long", 0, at_least(0),
        "A record stays uncompacted at least this long after its append.", "ms")
    min_insync_replicas: int = _key(
        "int", 1, between(1, INT_MAX),
        "acks=all and acks=disk fail with NotEnoughReplicasError while fewer replicas are in sync.", "replicas")
    retention_bytes: int = _key(
        "long", -1, at_least_or_unset(0),
        "How much of a partition is kept, the oldest files going first; -1 is no limit.", "bytes")
    retention_ms: int = _key(
        "long", 7 * DAY_MS, at_least_or_unset(0),
        "How long a record is kept, counted from its append (in Kafka: from its timestamp); -1 is for ever.", "ms")
    segment_bytes: int = _key(
        "int", 256 * MIB, between(64 * KIB, INT_MAX),
        "A new file is begun when one has grown to this; a larger record gets a file of its own. "
        "Files only: segments in memory have sizes of their own.", "bytes")
    segment_ms: int = _key(
        "long", 7 * DAY_MS, at_least(1),
        "A new file is begun when one is this old. Retention does not wait for it.", "ms")
    unclean_leader_election_enable: bool = _key(
        "boolean", False, ANY,
        "Whether a replica that was not in sync may lead when no other is left; acknowledged records can be lost.")

    shmlog_crc: str = _key(
        "string", "small", one_of("small", "append"),
        "Which payloads the producer covers with a CRC: those up to 4 KiB, or all.")
    shmlog_full: str = _key(
        "string", "block", one_of("block", "raise", "drop_oldest"),
        "What an append does when the partition's memory is full, because the disk or a tethered consumer is slower: wait (up to "
        "max_block_ms), raise, or drop the oldest records (counted; their readers get OffsetOutOfRangeError).")
    shmlog_memory_bytes: int = _key(
        "long", -1, at_least_or_unset(64 * KIB),
        "The most memory the partition's ring may take; -1 is its share of memory.max.bytes.", "bytes")
    shmlog_spill: bool = _key(
        "boolean", True, ANY,
        "Whether records go to disk; a topic without it lives in memory alone and is gone after a reboot.")
    shmlog_visibility: str = _key(
        "string", "committed", one_of("committed", "appended"),
        "What consumers of a replicated topic see: records up to the high watermark, or all that was appended, "
        "of which an unlucky failover may drop some.")
    # fmt: on


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The configs of a cluster (`shmlog up -c key=value`)."""

    # fmt: off
    auto_create_topics_enable: bool = _key(
        "boolean", True, ANY,
        "Whether producing to an unknown topic creates it. Consuming never does.")
    data_max_bytes: int = _key(
        "long", -1, at_least_or_unset(MIB),
        "The most disk that all logs may take; -1 leaves max(1 GiB, 5 %) of the file system free.", "bytes")
    replica_lag_time_max_ms: int = _key(
        "long", 2000, at_least(10),
        "A follower that has not caught up with its leader for so long leaves the in-sync replicas; until then acks=all waits for it.", "ms")
    default_replication_factor: int = _key(
        "int", 1, between(1, 32767),
        "Replicas of a topic whose creator names no number.", "replicas")
    memory_max_bytes: int = _key(
        "long", -1, at_least_or_unset(MIB),
        "The most shared memory that all segments may take; -1 is a quarter of what is free in /dev/shm at the start.", "bytes")
    num_partitions: int = _key(
        "int", 1, between(1, 16384),
        "Partitions of a topic whose creator names no number.", "partitions")
    # fmt: on


# Kafka's topic configs that mean nothing here. Tools and client libraries set them as a matter of course, so they are
# accepted and dropped; `explain` says so.
WITHOUT_EFFECT = frozenset(
    {
        "file.delete.delay.ms",
        "follower.replication.throttled.replicas",
        "index.interval.bytes",
        "leader.replication.throttled.replicas",
        "local.retention.bytes",
        "local.retention.ms",
        "message.downconversion.enable",
        "message.format.version",
        "message.timestamp.after.max.ms",
        "message.timestamp.before.max.ms",
        "message.timestamp.difference.max.ms",
        "preallocate",
        "remote.storage.enable",
        "segment.index.bytes",
        "segment.jitter.ms",
    }
)


class ConfigKey(NamedTuple):
    """One row of the table, as help, docs and gateway want it."""

    name: str
    scope: str  # "topic" or "cluster"
    kind: str
    default: Any
    allowed: Allowed
    unit: str
    doc: str

    @property
    def default_text(self) -> str:
        return to_text(self.default)


def _rows(scope: str, cls: Any) -> dict[str, ConfigKey]:
    def row(f: Field[Any]) -> ConfigKey:
        assert f.default is not MISSING
        m = f.metadata
        return ConfigKey(f.name.replace("_", "."), scope, m["kind"], f.default, m["allowed"], m["unit"], m["doc"])

    return {r.name: r for r in map(row, fields(cls))}


TOPIC_KEYS: Mapping[str, ConfigKey] = _rows("topic", TopicConfig)
CLUSTER_KEYS: Mapping[str, ConfigKey] = _rows("cluster", ClusterConfig)

# --- strings to typed and back -----------------------------------------------------------------------------------------

_C = TypeVar("_C", TopicConfig, ClusterConfig)


def topic_config(strings: Mapping[str, str], base: TopicConfig | None = None) -> TopicConfig:
    """Validate what a user gave; keys not named keep the value they have in `base` (the defaults)."""
    config = _parse(TopicConfig, TOPIC_KEYS, strings, base)
    if config.min_compaction_lag_ms > config.max_compaction_lag_ms:
        raise InvalidConfigurationError(
            f"min.compaction.lag.ms ({config.min_compaction_lag_ms}) is larger than max.compaction.lag.ms ({config.max_compaction_lag_ms})",
            key="min.compaction.lag.ms",
        )
    return config


def cluster_config(strings: Mapping[str, str], base: ClusterConfig | None = None) -> ClusterConfig:
    return _parse(ClusterConfig, CLUSTER_KEYS, strings, base)


def to_text(value: Any) -> str:
    """A typed value as Kafka writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def to_strings(config: TopicConfig | ClusterConfig, changed_only: bool = False) -> dict[str, str]:
    """The inverse of topic_config and cluster_config; with changed_only what differs from the defaults."""
    return {f.name.replace("_", "."): to_text(value) for f in fields(config) if (value := getattr(config, f.name)) != f.default or not changed_only}


def explain(key: str) -> str:
    """The paragraph of `shmlog config explain KEY`."""
    if key in WITHOUT_EFFECT:
        return f"{key}: accepted for Kafka's sake, without effect here."
    row = TOPIC_KEYS.get(key) or CLUSTER_KEYS.get(key)
    if row is None:
        raise _unknown(key, {**TOPIC_KEYS, **CLUSTER_KEYS}, "config")
    unit = f" {row.unit}" if row.unit else ""
    return f"{row.name} ({row.scope}, {row.kind}, default {row.default_text}{unit})\n{row.doc}\nAllowed: {row.allowed.words}."


def _parse(cls: type[_C], keys: Mapping[str, ConfigKey], strings: Mapping[str, str], base: _C | None) -> _C:
    typed = {} if base is None else {f.name: getattr(base, f.name) for f in fields(base)}
    for key, text in strings.items():
        if key in keys:
            typed[key.replace(".", "_")] = _value(keys[key], text)
        elif not (cls is TopicConfig and key in WITHOUT_EFFECT):
            raise _unknown(key, keys, f"{'topic' if cls is TopicConfig else 'cluster'} config")
    return cls(**typed)


_KINDS = {"boolean": "true or false", "int": "an integer", "long": "an integer", "double": "a number"}


def _value(row: ConfigKey, given: Any) -> Any:
    # Kafka's API takes strings, but 60000 for "60000" is what a Python user writes.
    text = given if isinstance(given, str) else to_text(tuple(given) if isinstance(given, list) else given)
    try:
        value = _convert(row.kind, text.strip())
    except ValueError:
        raise InvalidConfigurationError(f"{row.name}={text!r} is not {_KINDS[row.kind]}", key=row.name, hint=_hint(row)) from None
    if not row.allowed.test(value):
        unit = f" {row.unit}" if row.unit else ""
        raise InvalidConfigurationError(f"{row.name}={text!r}: allowed is {row.allowed.words}{unit}", key=row.name, hint=_hint(row))
    return value


def _hint(row: ConfigKey) -> str:
    return f"`shmlog config explain {row.name}`"


def _convert(kind: str, text: str) -> Any:
    if kind == "boolean":
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if kind == "list":
        # Sorted and without doubles, so that equal policies compare equal.
        return tuple(sorted({word.strip() for word in text.split(",") if word.strip()}))
    if kind == "string":
        return text
    if kind == "double":
        return float(text)
    if not re.fullmatch(r"[+-]?[0-9]+", text):  # int() would also take 1_000 and Arabic digits, which Kafka does not
        raise ValueError(text)
    return int(text)


def _unknown(key: str, keys: Mapping[str, ConfigKey], what: str) -> InvalidConfigurationError:
    import difflib  # costs 5 ms, needed only here

    other = next((scope for scope, rows in (("topic", TOPIC_KEYS), ("cluster", CLUSTER_KEYS)) if key in rows), None)
    if other:
        return InvalidConfigurationError(f"{key} is a {other} config, not a {what}", key=key)
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    return InvalidConfigurationError(
        f"unknown {what} {key!r}" + (f"; did you mean {near[0]}?" if near else ""),
        key=key,
        hint="known are " + ", ".join(sorted(keys)),
    )


# --- names -------------------------------------------------------------------------------------------------------------

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
# Without dots: objects are named <cluster>.<id>, and wiping "a" must not take "a.b" with it.
_CLUSTER = re.compile(r"[A-Za-z0-9_-]{1,32}")

DEFAULT_CLUSTER = "default"


def topic_name(name: str) -> str:
    """Kafka's rule; returns the name."""
    if not isinstance(name, str) or not _TOPIC.fullmatch(name) or name in (".", ".."):
        raise InvalidTopicError(f"{_shown(name)} is not a topic name: 1 to 249 of letters, digits, '.', '_' and '-', and not '.' or '..'")
    return name


def cluster_name(name: str) -> str:
    return _plain_name(name, "cluster")


def namespace_name(name: str) -> str:
    return _plain_name(name, "namespace")


def _plain_name(name: str, what: str) -> str:
    if not isinstance(name, str) or not _CLUSTER.fullmatch(name):
        raise InvalidConfigurationError(f"{_shown(name)} is not a {what} name: 1 to 32 of letters, digits, '_' and '-'")
    return name


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text) - 2} characters)"


# --- addresses and places ----------------------------------------------------------------------------------------------


class Address(NamedTuple):
    """A cluster, or a namespace within one (topics and groups of its own)."""

    cluster: str
    namespace: str = ""

    def __str__(self) -> str:
        return f"shm://{self.cluster}" + (f"/{self.namespace}" if self.namespace else "")


def default_cluster(environ: Mapping[str, str] = os.environ) -> str:
    """The name in $SHMLOG_CLUSTER, which is "name" or "name/namespace"."""
    return cluster_name((environ.get("SHMLOG_CLUSTER") or DEFAULT_CLUSTER).partition("/")[0])


def parse_address(address: str | list[str] | None, environ: Mapping[str, str] = os.environ) -> Address:
    """`bootstrap_servers`: None is $SHMLOG_CLUSTER, else shm://name or shm://name/namespace (alone or in a list of one)."""
    if address is None:
        _, slash, namespace = environ.get("SHMLOG_CLUSTER", "").partition("/")
        return Address(default_cluster(environ), namespace_name(namespace) if slash else "")
    if isinstance(address, list | tuple):
        if len(address) != 1:
            raise InvalidConfigurationError(f"bootstrap_servers names {len(address)} addresses; a cluster here has one")
        address = address[0]
    if not isinstance(address, str):
        raise InvalidConfigurationError(f'{_shown(address)} is not an address; write "shm://name" or "shm://name/namespace"')
    scheme, separator, rest = address.partition("://")
    if separator and scheme == "shm":
        cluster, slash, namespace = rest.partition("/")
        return Address(cluster_name(cluster), namespace_name(namespace) if slash else "")
    if (not separator and ":" in address) or scheme in ("kafka", "PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"):
        raise InvalidConfigurationError(
            f'"{address}" is the address of a Kafka broker; shmlog is reached as "shm://{default_cluster(environ)}", '
            "and this version has no gateway for Kafka's own clients yet"
        )
    raise InvalidConfigurationError(f'{_shown(address)} is not an address; write "shm://name" or "shm://name/namespace"')


def state_dir(cluster: str, environ: Mapping[str, str] = os.environ) -> str:
    """Where a cluster's logs and metadata lie unless --data says otherwise."""
    base = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # unset, or relative, which the XDG rules say to ignore
        base = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "shmlog", cluster_name(cluster))


def run_dir(cluster: str, uid: int | None = None) -> str:
    """Sockets, FIFOs and locks of a running cluster.

    Beside the shared memory, so that sharing /dev/shm is all a container needs; and short, because the path of a unix socket
    may have 107 bytes.
    """
    return f"/dev/shm/shmlog.{os.getuid() if uid is None else uid}.{cluster_name(cluster)}/"
