"""shmlog.types: plain values, and an import that costs nothing."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import shmlog
from shmlog.errors import IllegalStateError
from shmlog.types import NewTopic, OffsetAndMetadata, Record, TopicPartition

ROOT = Path(__file__).parent.parent


def test_record_shows_milliseconds_of_its_nanoseconds() -> None:
    assert Record("t", 0, 5, 1_999_999).timestamp == 1
    assert Record("t", 0, 5, -1).timestamp == -1


def test_records_are_equal_by_content_and_pickle() -> None:
    a = Record("t", 1, 2, 3, 0, b"k", b"v", [("h", b"1")], 7)
    assert pickle.loads(pickle.dumps(a)) == a
    assert Record("t", 1, 2, 3, 0, b"k", b"w", [("h", b"1")], 7) != a
    assert hash(a) == hash(pickle.loads(pickle.dumps(a)))


def test_record_takes_no_attribute_of_its_own() -> None:
    with pytest.raises(AttributeError):
        Record("t", 0, 0, 0).other = 1  # type: ignore[attr-defined]


def test_repr_of_a_large_value_is_short() -> None:
    assert len(repr(Record("t", 0, 0, 0, value=bytes(1 << 20)))) < 500


def test_array_has_the_senders_dtype_and_shape_without_a_copy() -> None:
    import numpy as np

    sent = np.arange(6, dtype="i4").reshape(2, 3)
    value = sent.tobytes()
    got = Record("t", 0, 0, 0, value=value, dtype="<i4", shape=(2, 3)).array()
    assert (got == sent).all() and got.dtype == sent.dtype
    assert got.__array_interface__["data"][0] == np.frombuffer(value, "u1").__array_interface__["data"][0]
    assert Record("t", 0, 0, 0, value=value, dtype="<i4", shape=(2, 3)).array("u1").shape == (24,)


def test_array_of_a_plain_record_asks_for_a_type() -> None:
    with pytest.raises(IllegalStateError, match="t-0@9 was not sent as an array"):
        Record("t", 0, 9, 0, value=b"x").array()
    assert list(Record("t", 0, 9, 0, value=b"\1\2").array("u1")) == [1, 2]


def test_topic_partition_is_a_hashable_pair() -> None:
    assert {TopicPartition("t", 1): 1}[("t", 1)] == 1  # type: ignore[index]
    assert OffsetAndMetadata(5) == (5, "", -1)


def test_new_topic_takes_both_names_for_its_configs() -> None:
    assert NewTopic("t", 1, 1, topic_configs={"a": "1"}, config={"b": "2"}).config == {"a": "1", "b": "2"}


def test_exports_of_this_layer_resolve_and_the_unknown_is_an_attribute_error() -> None:
    for name, (module, attribute) in shmlog._EXPORTS.items():
        if module in ("shmlog.errors", "shmlog.types"):
            assert getattr(shmlog, name) is getattr(sys.modules[module], attribute)
    assert shmlog.errors.ShmlogError is shmlog.ShmlogError
    with pytest.raises(AttributeError, match="no attribute 'Produzer'"):
        shmlog.Produzer  # noqa: B018
    assert set(shmlog.__all__) <= set(dir(shmlog))


def test_import_of_the_package_brings_no_heavy_module() -> None:
    code = "import sys; before = set(sys.modules); import shmlog; print(*sorted(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout
    assert set(out.split()) <= {"__future__", "shmlog"}


def test_types_config_and_errors_need_no_third_party_module() -> None:
    code = "import sys, shmlog.types, shmlog.config, shmlog.errors, shmlog.partitioner; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout
    assert not {"numpy", "msgspec", "zmq", "sqlite3", "click", "_cffi_backend", "posix_ipc"} & set(out.split())
