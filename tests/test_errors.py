"""shmlog.errors: one tree, with Kafka's numbers, Python's builtins, and nothing lost on the way between processes."""

from __future__ import annotations

import copy
import errno
import pickle
import re
from pathlib import Path

import pytest

from shmlog import errors
from shmlog.errors import ShmlogError

ALL = sorted(
    {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, ShmlogError)},
    key=lambda c: c.__name__,
)

# api.md, "Errors": what other programs rely on.
CONTRACT = {
    "UnknownTopicOrPartitionError": (3, LookupError),
    "TopicAlreadyExistsError": (36, ShmlogError),
    "InvalidTopicError": (17, ValueError),
    "InvalidConfigurationError": (40, ValueError),
    "MessageSizeTooLargeError": (10, ValueError),
    "OffsetOutOfRangeError": (1, LookupError),
    "NoOffsetForPartitionError": (1, ShmlogError),
    "IllegalStateError": (42, RuntimeError),
    "NotLeaderForPartitionError": (6, ShmlogError),
    "NotEnoughReplicasError": (19, ShmlogError),
    "KafkaTimeoutError": (7, TimeoutError),
    "NoBrokersAvailable": (8, ConnectionError),
    "CommitFailedError": (22, ShmlogError),
    "FencedInstanceIdError": (82, ShmlogError),
    "FencedMemberEpochError": (110, ShmlogError),
    "ProducerFencedError": (90, ShmlogError),
    "CorruptRecordError": (2, ShmlogError),
    "OffsetConflictError": (87, ShmlogError),
    "DeliveryError": (-1, ShmlogError),
    "ShmSpaceError": (56, OSError),
    "StorageFullError": (56, OSError),
    "LeaseLostError": (-1, ShmlogError),
    "VersionMismatchError": (35, ShmlogError),
    "ForkedProcessError": (-1, RuntimeError),
    "ClosedError": (-1, RuntimeError),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_contract_names_have_their_number_and_builtin(name: str) -> None:
    cls = getattr(errors, name)
    code, builtin = CONTRACT[name]
    assert cls.code == code
    assert issubclass(cls, ShmlogError) and issubclass(cls, builtin)


def test_kafka_error_is_the_same_class() -> None:
    assert errors.KafkaError is ShmlogError


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.__name__)
def test_str_is_the_sentence_alone(cls: type[ShmlogError]) -> None:
    assert str(cls("the disk is on fire")) == "the disk is on fire"


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.__name__)
def test_every_class_has_a_sentence_of_its_own(cls: type[ShmlogError]) -> None:
    assert cls.__doc__
    assert str(cls()) == cls.__doc__.partition("\n")[0]
    assert str(cls()).endswith(".")


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.__name__)
@pytest.mark.parametrize("clone", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy], ids=["pickle", "copy"])
def test_error_survives_with_all_fields(cls: type[ShmlogError], clone: object) -> None:
    error = cls("sentence", topic="t", partition=3, code=77, retriable=True, hint="do this")
    other = clone(error)  # type: ignore[operator]
    assert type(other) is cls
    assert (str(other), other.topic, other.partition, other.code, other.retriable, other.hint) == (
        "sentence", "t", 3, 77, True, "do this",
    )  # fmt: skip


def test_declared_fields_of_a_class_travel_too() -> None:
    first = errors.StorageFullError("no room", needed_bytes=10, free_bytes=3)
    error = pickle.loads(pickle.dumps(errors.DeliveryError("2 records failed", count=2, first=first)))
    assert error.count == 2
    assert (error.first.needed_bytes, error.first.free_bytes, error.first.errno) == (10, 3, errno.ENOSPC)


def test_os_errors_have_an_errno_that_can_be_overruled() -> None:
    assert errors.ShmSpaceError().errno == errno.ENOSPC
    assert errors.StorageError().errno == errno.EIO
    assert pickle.loads(pickle.dumps(errors.SystemCallError("open", errno=errno.EMFILE))).errno == errno.EMFILE


def test_undeclared_field_is_refused() -> None:
    with pytest.raises(TypeError, match="no field 'ofset'"):
        errors.OffsetOutOfRangeError("x", ofset=3)


def test_instance_fields_leave_the_class_alone() -> None:
    errors.NoBrokersAvailable("x", hint="other", code=5)
    assert errors.NoBrokersAvailable.code == 8
    assert errors.NoBrokersAvailable().hint == "start one with `shmlog up`"


def test_json_has_the_five_names_of_the_contract() -> None:
    assert errors.to_json(errors.TopicAlreadyExistsError("topic t exists", hint="choose another")) == {
        "error": {
            "name": "TopicAlreadyExistsError",
            "code": 36,
            "message": "topic t exists",
            "hint": "choose another",
            "retriable": False,
        }
    }


def test_json_of_a_foreign_exception_still_is_a_report() -> None:
    error = errors.to_json(ZeroDivisionError())["error"]
    assert (error["name"], error["code"], error["message"]) == ("ZeroDivisionError", -1, "ZeroDivisionError")


def test_c_code_becomes_its_class_with_detail_and_fields() -> None:
    error = errors.from_code("SL_E_CONFLICT", "the end is 43", expected_offset=41, log_end_offset=43)
    assert isinstance(error, errors.OffsetConflictError)
    assert (str(error), error.expected_offset, error.log_end_offset) == ("the end is 43", 41, 43)


def test_unknown_c_code_names_itself() -> None:
    assert str(errors.from_code("SL_E_NEW", "odd")) == "odd (SL_E_NEW)"


def test_every_code_of_the_c_core_has_a_class() -> None:
    header = Path(__file__).parent.parent / "csrc" / "core.h"
    in_c = set(re.findall(r"^#define (SL_E_\w+)", header.read_text(), re.MULTILINE))
    assert in_c - {"SL_E_AGAIN", "SL_E_INTR"} == set(errors.C_CODES)
