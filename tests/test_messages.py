"""What travels between the processes: framing, errors, and the two ways to read a view."""

from __future__ import annotations

import socket
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from shmlog import errors
from shmlog import messages as m

VIEW = m.ClusterView(
    cluster_id=b"c" * 16,
    name="c",
    version=3,
    coordinator_epoch=1,
    boot_counter=1,
    data_dirs=("/data",),
    state_dir="/data",
    config={"num.partitions": "2"},
    brokers={0: m.BrokerView(0, 4, 1, "/data/broker-0")},
    topics={"ns/t": m.TopicView("ns/t", b"t" * 16, {}, (m.PartitionView(0, 0, 1, (0,), (0,)),))},
    deleting=(m.DeletingPartition(7, b"o" * 16, "old", 0, 0),),
    owner_pid=42,
    temporary=True,
)


@hypothesis.given(st.lists(st.integers(1, 40), max_size=20))
def test_messages_arrive_whole_however_the_stream_is_cut(cuts: list[int]) -> None:
    sent = [m.Done(7), m.Shutdown(True), m.CreateTopics((m.TopicSpec("t", b"i" * 16, 3, config={"a": "b"}),)), m.Trims((1, m.Failure("X", "y")))]
    stream = b"".join(map(m.frame, sent))
    unframer, received = m.Unframer(), []
    for cut in cuts:
        received += unframer.feed(stream[:cut])
        stream = stream[cut:]
    assert received + unframer.feed(stream) == sent


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x02\0\0\0{}", b"\x01\0\0\0\xc1", m._LENGTH.pack(5) + b"\x81\xa4type"])
def test_what_is_not_a_message_is_a_value_error(garbage: bytes) -> None:
    with pytest.raises(ValueError):
        m.Unframer().feed(garbage)


@hypothesis.given(st.binary(max_size=200))
def test_hostile_bytes_never_do_worse_than_a_value_error(data: bytes) -> None:
    try:
        m.Unframer().feed(data)
    except ValueError:
        pass


def test_a_peer_that_says_nothing_costs_a_deadline_and_one_that_ends_an_error() -> None:
    here, there = socket.socketpair()
    with here, there:
        with pytest.raises(TimeoutError):
            m.receive(here, time.monotonic() + 0.01)
        m.send(there, m.Done(5), time.monotonic() + 20)
        assert m.receive(here, time.monotonic() + 20) == m.Done(5)
        there.sendall(m.frame(m.Done(6))[:-1])
        there.close()
        with pytest.raises(ConnectionError):
            m.receive(here, time.monotonic() + 20)


def test_errors_travel_with_class_sentence_and_numbers() -> None:
    back = m.exception_of(m.decode(m.encode(m.failure_of(errors.ShmSpaceError("full", needed_bytes=5, free_bytes=3, hint="make room")))))
    assert type(back) is errors.ShmSpaceError
    assert (str(back), back.needed_bytes, back.free_bytes, back.hint) == ("full", 5, 3, "make room")
    assert "KeyError" in str(m.exception_of(m.failure_of(KeyError("bug"))))
    assert "FromTheFuture" in str(m.exception_of(m.Failure("FromTheFuture", "new")))
    assert str(m.exception_of(m.Failure("ClosedError", "gone", {"no_such_field": 1}))) == "gone"
    assert type(m.exception_of(m.Failure("annotations", "not a class"))) is errors.ShmlogError


def test_a_view_reads_the_same_lazily_and_at_once() -> None:
    data = m.encode_view(VIEW)
    assert m.decode_view(data) == VIEW
    lazy = m.decode_view_lazily(data)
    assert m.decode_topic(lazy.topics["ns/t"]) == VIEW.topics["ns/t"]
    assert m.decode_deleting(lazy.deleting) == VIEW.deleting
    same = set(m.ClusterView.__struct_fields__) - {"topics", "deleting"}
    assert set(m.LazyClusterView.__struct_fields__) == set(m.ClusterView.__struct_fields__)
    assert all(getattr(lazy, name) == getattr(VIEW, name) for name in same)


def test_names_and_directories() -> None:
    assert m.internal_name("", "t") == "t"
    assert m.split_name(m.internal_name("ns", "t")) == ("ns", "t")
    assert m.split_name("t") == ("", "t")
    assert m.partition_directory("/d", "ns/t", 3, b"\xab" * 16) == "/d/ns~t-3-abababab"
    assert m.partition_directory("", "t", 3, b"\xab" * 16) == ""
    long = m.partition_directory("/d", "n" * 32 + "/" + "t" * 249, 16383, b"\xab" * 16).rpartition("/")[2]
    assert len(long) <= 255
    assert "ab" * 16 in long
