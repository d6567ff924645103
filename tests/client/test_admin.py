"""Admin against a running cluster."""

from __future__ import annotations

import os
import pickle
from typing import Any

import pytest

from shmlog import Admin, NewPartitions, NewTopic, TopicPartition, errors


def test_topics_are_made_listed_described_and_deleted(here: Any) -> None:
    admin = here.admin()
    made = admin.create_topics([NewTopic("b", 3, 1), NewTopic("a", config={"retention.ms": "60000"})])
    assert [(t["name"], t["error_code"], t["num_partitions"]) for t in made["topics"]] == [("b", 0, 3), ("a", 0, 1)]
    assert admin.list_topics() == ["a", "b"]
    here.producer().send("b", b"x", partition=2)
    b, a = admin.describe_topics(["b", "a"])
    assert [p["partition"] for p in b["partitions"]] == [0, 1, 2]
    last = b["partitions"][2]
    assert (last["log_start_offset"], last["high_watermark"], last["log_end_offset"]) == (0, 1, 1)
    assert last["leader"] == last["replicas"][0]
    assert a["config"] == {"retention.ms": "60000"}
    assert len(admin.describe_topics()) == 2
    assert admin.delete_topics(["a"])["responses"] == [{"name": "a", "error_code": 0, "error_message": None}]
    assert admin.list_topics() == ["b"]


def test_what_cannot_be_made_is_an_error_each_on_its_own(here: Any) -> None:
    admin = here.admin()
    admin.create_topics(NewTopic("there"))
    with pytest.raises(errors.TopicAlreadyExistsError):
        admin.create_topics([NewTopic("there"), NewTopic("other")])
    assert admin.list_topics() == ["other", "there"]  # the second was made all the same
    result = admin.create_topics([NewTopic("there")], raise_errors=False)
    assert result["topics"][0]["error_code"] == errors.TopicAlreadyExistsError.code
    with pytest.raises(errors.InvalidTopicError):
        admin.create_topics([NewTopic("no/slash")])
    with pytest.raises(errors.InvalidConfigurationError, match=r"retention\.ms"):
        admin.create_topics([NewTopic("x", config={"retention.m": "1"})])
    admin.create_topics([NewTopic("dry")], validate_only=True)
    assert "dry" not in admin.list_topics()
    for call in (lambda: admin.delete_topics("nowhere"), lambda: admin.describe_topics("nowhere"), lambda: admin.create_partitions({"nowhere": 3})):
        with pytest.raises(errors.UnknownTopicOrPartitionError):
            call()


def test_partitions_are_added_and_never_taken_away(here: Any) -> None:
    here.topic("t", 2)
    admin = here.admin()
    admin.create_partitions({"t": NewPartitions(5)})
    assert here.producer().partitions_for("t") == {0, 1, 2, 3, 4}
    with pytest.raises(errors.InvalidPartitionsError):
        admin.create_partitions({"t": 5})
    with pytest.raises(errors.InvalidPartitionsError):
        admin.create_partitions({"t": 4}, validate_only=True)


def test_configs_are_set_and_given_back(here: Any) -> None:
    here.topic("t")
    admin = here.admin()
    default = admin.describe_configs("t")["t"]["retention.ms"]
    assert default["is_default"]
    admin.alter_topic_configs({"t": {"retention.ms": 60000, "max.message.bytes": "1000"}})
    changed = admin.describe_configs(["t"])["t"]
    assert (changed["retention.ms"]["value"], changed["retention.ms"]["is_default"]) == ("60000", False)
    admin.alter_topic_configs({"t": {"retention.ms": None}})
    assert admin.describe_configs("t")["t"]["retention.ms"] == default
    assert admin.describe_configs("t")["t"]["max.message.bytes"]["value"] == "1000"
    with pytest.raises(errors.InvalidConfigurationError):
        admin.alter_topic_configs({"t": {"retention.ms": "soon"}})
    assert "auto.create.topics.enable" in admin.describe_configs([""])[""]


def test_records_are_deleted_up_to_an_offset(here: Any) -> None:
    p, admin = here.producer(), here.admin()
    for _ in range(10):
        p.send("t", b"x")
    tp = TopicPartition("t", 0)
    assert admin.delete_records({tp: 4})[tp]["low_watermark"] == 4
    assert admin.describe_topics("t")[0]["partitions"][0]["log_start_offset"] == 4
    assert admin.delete_records({tp: -1})[tp]["low_watermark"] == 10
    with pytest.raises(errors.OffsetOutOfRangeError):
        admin.delete_records({tp: 11})
    with pytest.raises(errors.UnknownTopicOrPartitionError):
        admin.delete_records({TopicPartition("t", 3): 1})


def test_the_cluster_is_described_from_shared_memory(here: Any) -> None:
    cluster = here.admin().describe_cluster()
    assert cluster["brokers"]
    assert cluster["brokers"][0]["state"] == "up"
    assert cluster["brokers"][0]["pid"] > 0
    assert len(bytes.fromhex(cluster["cluster_id"])) == 16


def test_what_is_not_there_yet_says_so(here: Any) -> None:
    admin = here.admin()
    for call in (admin.list_groups, lambda: admin.describe_groups(["g"])):
        with pytest.raises(errors.UnsupportedVersionError, match="later version"):
            call()
    with pytest.raises(TypeError, match="timeout_ms"):
        Admin(here.address, timeout=5)


def test_closed_forked_and_pickled(here: Any) -> None:
    admin = here.admin()
    with pickle.loads(pickle.dumps(admin)) as other:
        assert other.list_topics() == []
    with pytest.raises(errors.ClosedError):
        other.list_topics()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            admin.list_topics()
        except errors.ForkedProcessError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert admin.list_topics() == []
