"""shmlog.config: the one table of configs, names, addresses and places."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmlog import config
from shmlog.config import Address, ClusterConfig, TopicConfig
from shmlog.errors import InvalidConfigurationError, InvalidTopicError

ROWS = {**config.TOPIC_KEYS, **config.CLUSTER_KEYS}


# --- the table ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda r: r.name)
def test_every_default_is_allowed_and_survives_the_way_through_text(row: config.ConfigKey) -> None:
    assert row.allowed.test(row.default)
    parse = config.topic_config if row.scope == "topic" else config.cluster_config
    parsed = parse({row.name: row.default_text})
    assert getattr(parsed, row.name.replace(".", "_")) == row.default


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda r: r.name)
def test_every_key_is_explained(row: config.ConfigKey) -> None:
    text = config.explain(row.name)
    assert row.name in text and row.default_text in text and row.doc in text and row.allowed.words in text
    assert row.doc.endswith(".")
    assert bool(row.unit) == (row.kind in ("int", "long"))


def test_no_key_is_in_two_scopes_or_both_known_and_without_effect() -> None:
    assert not set(config.TOPIC_KEYS) & set(config.CLUSTER_KEYS)
    assert not set(ROWS) & config.WITHOUT_EFFECT


def test_defaults_are_those_of_the_contract() -> None:
    topic, cluster = TopicConfig(), ClusterConfig()
    assert (topic.flush_ms, topic.max_message_bytes, topic.retention_ms) == (1000, 64 * 2**20, 7 * 24 * 3600 * 1000)
    assert (topic.shmlog_spill, topic.shmlog_full, topic.shmlog_visibility, topic.shmlog_crc) == (True, "block", "committed", "small")
    assert (cluster.auto_create_topics_enable, cluster.num_partitions, cluster.default_replication_factor) == (True, 1, 1)


# --- parsing -----------------------------------------------------------------------------------------------------------


def test_strings_become_typed_values() -> None:
    parsed = config.topic_config(
        {"retention.ms": " 60000 ", "cleanup.policy": "compact, delete", "shmlog.spill": "FALSE", "min.cleanable.dirty.ratio": "0.25"}
    )
    assert parsed.retention_ms == 60000
    assert parsed.cleanup_policy == ("compact", "delete")
    assert parsed.shmlog_spill is False
    assert parsed.min_cleanable_dirty_ratio == 0.25


def test_a_python_value_does_as_well_as_its_string() -> None:
    parsed = config.topic_config({"retention.ms": 60000, "shmlog.spill": False, "cleanup.policy": ["compact"]})  # type: ignore[dict-item]
    assert (parsed.retention_ms, parsed.shmlog_spill, parsed.cleanup_policy) == (60000, False, ("compact",))


def test_config_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TopicConfig().retention_ms = 1  # type: ignore[misc]


def test_alter_keeps_what_it_does_not_name() -> None:
    base = config.topic_config({"retention.ms": "5", "flush.ms": "7"})
    altered = config.topic_config({"flush.ms": "8"}, base)
    assert (altered.retention_ms, altered.flush_ms) == (5, 8)


def test_only_what_differs_from_the_defaults_is_written_down() -> None:
    given_strings = {"retention.ms": "-1", "cleanup.policy": "compact,delete", "shmlog.spill": "false"}
    assert config.to_strings(config.topic_config(given_strings), changed_only=True) == given_strings
    assert config.topic_config(config.to_strings(TopicConfig())) == TopicConfig()


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(InvalidConfigurationError, match=r"unknown topic config 'retention\.mss'; did you mean retention\.ms\?") as e:
        config.topic_config({"retention.mss": "1"})
    assert e.value.key == "retention.mss"
    assert "cleanup.policy" in e.value.hint


def test_key_of_the_other_scope_says_so() -> None:
    with pytest.raises(InvalidConfigurationError, match=r"num\.partitions is a cluster config, not a topic config"):
        config.topic_config({"num.partitions": "3"})
    with pytest.raises(InvalidConfigurationError, match=r"retention\.ms is a topic config, not a cluster config"):
        config.cluster_config({"retention.ms": "3"})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("retention.ms", "soon", "is not an integer"),
        ("retention.ms", "1_000", "is not an integer"),
        ("retention.ms", "-2", "-1 or at least 0 ms"),
        ("retention.ms", str(2**63), "allowed is"),
        ("max.message.bytes", "999999999", "0 to 267386880 bytes"),
        ("cleanup.policy", "archive", "a comma-separated list of delete, compact"),
        ("cleanup.policy", "", "a comma-separated list of delete, compact"),
        ("compression.type", "zip", "producer, uncompressed, gzip, snappy, lz4, zstd"),
        ("shmlog.spill", "yes", "is not true or false"),
        ("min.cleanable.dirty.ratio", "nan", "0 to 1"),
        ("min.insync.replicas", "0", "1 to"),
    ],
)
def test_bad_value_is_told_what_is_allowed(key: str, value: str, words: str) -> None:
    with pytest.raises(InvalidConfigurationError) as e:
        config.topic_config({key: value})
    assert words in str(e.value) and key in str(e.value)
    assert "\n" not in str(e.value)


def test_keys_must_fit_each_other() -> None:
    with pytest.raises(InvalidConfigurationError, match="larger than max"):
        config.topic_config({"min.compaction.lag.ms": "10", "max.compaction.lag.ms": "9"})


def test_kafkas_configs_without_meaning_here_are_taken_and_dropped() -> None:
    assert config.topic_config({"segment.jitter.ms": "5"}) == TopicConfig()
    assert "without effect" in config.explain("segment.jitter.ms")


@given(st.dictionaries(st.one_of(st.sampled_from(sorted(ROWS)), st.text()), st.text()))
def test_any_strings_give_a_config_or_the_typed_error(strings: dict[str, str]) -> None:
    for parse in (config.topic_config, config.cluster_config):
        try:
            parse(strings)
        except InvalidConfigurationError:
            pass


# --- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["orders", "a.b_c-D9", "x" * 249, "...", "_"])
def test_topic_name_is_legal(name: str) -> None:
    assert config.topic_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "x" * 250, "a b", "a/b", "ä", "orders\n", None])
def test_topic_name_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InvalidTopicError) as e:
        config.topic_name(name)
    assert "\n" not in str(e.value) and len(str(e.value)) < 250


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "x" * 33, "ü", "a\n"])
def test_cluster_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidConfigurationError):
        config.cluster_name(name)


# --- addresses and places ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "environ", "address"),
    [
        (None, {}, Address("default")),
        (None, {"SHMLOG_CLUSTER": ""}, Address("default")),
        (None, {"SHMLOG_CLUSTER": "mine"}, Address("mine")),
        ("shm://a", {"SHMLOG_CLUSTER": "mine"}, Address("a")),
        ("shm://a/test-17", {}, Address("a", "test-17")),
        (["shm://a"], {}, Address("a")),
    ],
)
def test_address_is_understood(text: str | list[str] | None, environ: dict[str, str], address: Address) -> None:
    assert config.parse_address(text, environ) == address
    assert config.parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["localhost:9092", "10.0.0.1:9092,10.0.0.2:9092", "kafka://h:1", ["broker:9092"]])
def test_kafka_address_is_named_as_one(text: str | list[str]) -> None:
    with pytest.raises(InvalidConfigurationError) as e:
        config.parse_address(text, {"SHMLOG_CLUSTER": "mine"})
    assert "Kafka" in str(e.value) and "no gateway" in str(e.value) and "shm://mine" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["", "default", "shm://", "shm://a/", "shm://a/b/c", "shm://a.b", "http://x", [], ["shm://a", "shm://b"]])
def test_what_is_no_address_is_refused(text: str | list[str]) -> None:
    with pytest.raises(InvalidConfigurationError):
        config.parse_address(text, {})


def test_state_lies_under_xdg_state_home_if_that_is_absolute() -> None:
    assert config.state_dir("c", {"XDG_STATE_HOME": "/s", "HOME": "/h"}) == "/s/shmlog/c"
    assert config.state_dir("c", {"XDG_STATE_HOME": "s", "HOME": "/h"}) == "/h/.local/state/shmlog/c"
    assert config.state_dir("c", {"HOME": "/h"}) == "/h/.local/state/shmlog/c"


def test_run_directory_leaves_room_for_socket_names() -> None:
    assert config.run_dir("c", 1000) == "/dev/shm/shmlog.1000.c/"
    longest = config.run_dir("x" * 32, 2**32 - 2)
    assert len(longest) <= 107 - 40
