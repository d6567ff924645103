"""The dtype extension: what goes in comes out, and nothing that another process wrote can do harm."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmlog import arrays
from shmlog.errors import CorruptRecordError, IllegalArgumentError

DTYPES = [
    "u1",
    "<i4",
    ">f8",
    "?",
    "c16",
    "S5",
    "<U7",
    "V9",
    "<M8[ns]",
    "<m8[ms]",
    [("ts", "<i8"), ("px", "<f8"), ("qty", "<i4"), ("sym", "S4")],
    [("a", "u1"), ("nested", [("b", "<f4", (2, 3)), ("c", "<u2")])],
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (480, 640, 3), (0, 2)], ids=str)
def test_dtype_and_shape_come_back_equal(dtype: object, shape: tuple[int, ...]) -> None:
    made = np.dtype(dtype)  # type: ignore[call-overload]
    extension = arrays.encode(made, shape)
    assert len(extension) % 4 == 0
    text, got_shape = arrays.decode(extension)
    assert got_shape == shape
    assert arrays.parse(text) == made


def test_an_aligned_struct_keeps_its_padding() -> None:
    made = np.dtype([("a", "u1"), ("b", "<i8")], align=True)
    got = arrays.parse(arrays.text_of(made))
    assert got.itemsize == made.itemsize == 16
    assert got.fields is not None
    assert got.fields["b"][1] == 8


def test_objects_are_refused_in_both_directions() -> None:
    with pytest.raises(IllegalArgumentError, match="Python objects"):
        arrays.encode(np.dtype(object), (1,))
    with pytest.raises(IllegalArgumentError, match="Python objects"):
        arrays.contiguous(np.array([{}], dtype=object))
    with pytest.raises(CorruptRecordError, match="Python objects"):
        arrays.parse("|O")


def test_a_non_contiguous_array_is_copied_and_a_contiguous_one_is_not() -> None:
    whole = np.arange(12).reshape(3, 4)
    assert arrays.contiguous(whole) is whole
    part = arrays.contiguous(whole[:, ::2])
    assert part.flags.c_contiguous
    assert (part == whole[:, ::2]).all()
    assert arrays.contiguous(np.array(5)).shape == ()


@given(st.binary(max_size=64))
def test_any_bytes_decode_or_are_called_damaged(extension: bytes) -> None:
    try:
        text, shape = arrays.decode(extension)
        arrays.parse(text)
        assert len(shape) <= arrays.MAX_NDIM
    except CorruptRecordError:
        pass


def test_code_in_the_place_of_a_dtype_is_not_run() -> None:
    text = b"[().__class__]"
    with pytest.raises(CorruptRecordError):
        arrays.parse(arrays.decode(struct.pack("=HH", 0, len(text)) + text)[0])


def test_size_of_an_item() -> None:
    assert arrays.item_bytes("u1", (480, 640, 3)) == (np.dtype("u1"), 921600)
    assert arrays.item_bytes("<f8", ()) == (np.dtype("<f8"), 8)
    with pytest.raises(IllegalArgumentError):
        arrays.item_bytes("u1", (-1,))
