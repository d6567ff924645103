"""What a user gives and what the C core takes: values, keys and headers as bytes, an sl_record that points at them, and back.

An sl_record holds bare pointers. Whoever fills one keeps the cdata that fill() and value_of() return until the C call is over: they keep the bytes
alive.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from shmlog import arrays, errors
from shmlog._ffi import ffi, lib

U8 = ffi.typeof("uint8_t[]")
NULL = ffi.NULL
from_buffer = ffi.from_buffer

# sl_record as struct packs it, for batches of many.
SL_RECORD = struct.Struct("=QQQQIIIIqIIIIqii")
assert SL_RECORD.size == ffi.sizeof("sl_record")


def timestamp(ms: int | None, ns: int | None) -> int:
    """ns since 1970; 0: now. Somebody's 1970-01-01 itself becomes its first nanosecond."""
    if ns is not None:
        if ms is not None:
            raise TypeError("timestamp_ms and timestamp_ns are two units of one thing; give one")
        return _since_1970("timestamp_ns", ns, 1)
    return 0 if ms is None else _since_1970("timestamp_ms", ms, 1_000_000)


def _since_1970(name: str, given: int, unit_ns: int) -> int:
    if type(given) is not int and not hasattr(given, "__index__"):
        raise TypeError(f"{name} is an int, not {type(given).__name__}")
    ns = int(given) * unit_ns
    if not 0 <= ns < 2**63:
        raise errors.IllegalArgumentError(f"{name}={given} is not between 1970 and 2262")
    return ns or 1


def partition_number(given: int) -> int:
    if type(given) is not int and not hasattr(given, "__index__"):
        raise TypeError(f"a partition is an int, not {type(given).__name__}")
    return int(given)


def expected_of(offset: int | None) -> int:
    """expected_offset as the core takes it: there -1 is "wherever the log ends", so a negative number that somebody computed must not get through."""
    if offset is None:
        return -1
    if type(offset) is not int and not hasattr(offset, "__index__"):
        raise TypeError(f"expected_offset is an int, not {type(offset).__name__}")
    if not 0 <= offset < 2**48:
        raise errors.IllegalArgumentError(f"expected_offset={offset} is no offset: the first is 0")
    return int(offset)


def value_of(value: Any) -> tuple[Any, int, bytes | None]:
    """(cdata over the bytes, how many, dtype extension)"""
    if arrays.is_array(value):
        value = arrays.contiguous(value)
        extension = arrays.encode(value.dtype, value.shape)
        view = array_bytes(value)
    else:
        extension = None
        view = view_of(value, "value")
    return from_buffer(U8, view), len(view), extension


def array_bytes(array: Any) -> Any:
    """A contiguous array as its bytes. By a view as u1, because datetimes do not export the buffer protocol."""
    return array.reshape(-1).view("u1")


def view_of(value: Any, what: str) -> memoryview | bytes:
    """Any buffer as contiguous bytes; copied only if it is not contiguous."""
    if isinstance(value, str):
        serializer = f"give the producer {what}_serializer=str.encode, or " if what in ("key", "value") else ""
        raise TypeError(f"a {what} is bytes or a buffer, not str: {serializer}encode it yourself")
    try:
        view = memoryview(value)
    except TypeError:
        serializer = f"; give the producer a {what}_serializer" if what in ("key", "value") else ""
        raise TypeError(f"a {what} is bytes, a buffer or None, not {type(value).__name__}{serializer}") from None
    return view.cast("B") if view.c_contiguous and view.ndim and view.nbytes else view.tobytes()


def bytes_of(value: Any, what: str) -> bytes:
    if type(value) is bytes:
        return value
    if arrays.is_array(value):
        data: bytes = arrays.contiguous(value).tobytes()
        return data
    return bytes(view_of(value, what))


def encode_headers(headers: Iterable[tuple[str, bytes | None]]) -> bytes:
    """As sl_record wants them: u16 count, then (u16 bytes, name)(u32 bytes or SLNULL_BYTES, value) each."""
    out = bytearray(2)
    count = 0
    for header in headers:
        try:
            name, value = header
        except (TypeError, ValueError):
            raise TypeError(f"a header is a pair of a str and bytes or None, not {type(header).__name__}") from None
        if not isinstance(name, str):
            raise TypeError(f"a header's name is str, not {type(name).__name__}")
        encoded = name.encode()
        if len(encoded) > 0xFFFF:
            raise errors.IllegalArgumentError(f"a header's name has {len(encoded)} bytes; at most 65535")
        out += struct.pack("=H", len(encoded)) + encoded
        if value is None:
            out += struct.pack("=I", lib.SL_NULL_BYTES)
        else:
            data = bytes_of(value, "header's value")
            out += struct.pack("=I", len(data)) + data
        count += 1
    if count > 0xFFFF:
        raise errors.IllegalArgumentError(f"{count} headers; at most 65535")
    struct.pack_into("=H", out, 0, count)
    return bytes(out)


def fill(record: Any, key: bytes | None, headers: Iterable[tuple[str, bytes | None]] | None, dtype: bytes | None, stamp: int) -> tuple[Any, ...]:
    """Points the struct at these and returns what must live as long as it is used. clear() undoes it."""
    key_buffer = headers_buffer = dtype_buffer = NULL
    key_bytes = headers_bytes = 0
    if key is not None:
        key_buffer = from_buffer(U8, key)
        key_bytes = len(key)
    if headers:
        if isinstance(headers, dict):
            headers = headers.items()
        encoded = encode_headers(headers)
        headers_buffer = from_buffer(U8, encoded)
        headers_bytes = len(encoded)
    if dtype is not None:
        dtype_buffer = from_buffer(U8, dtype)
    record.key = key_buffer
    record.key_bytes = key_bytes
    record.headers = headers_buffer
    record.headers_bytes = headers_bytes
    record.dtype = dtype_buffer
    record.dtype_bytes = 0 if dtype is None else len(dtype)
    record.timestamp_ns = stamp
    return key_buffer, headers_buffer, dtype_buffer


def clear(record: Any) -> None:
    record.key = record.headers = record.dtype = NULL
    record.key_bytes = record.headers_bytes = record.dtype_bytes = record.timestamp_ns = 0


# --- and back ----------------------------------------------------------------------------------------------------------


def decode_headers(encoded: bytes) -> list[tuple[str, bytes | None]]:
    """What encode_headers() made. CorruptRecordError if it does not fit together: another process wrote it."""
    try:
        (count,) = struct.unpack_from("=H", encoded)
        position, found = 2, []
        for _ in range(count):
            (name_bytes,) = struct.unpack_from("=H", encoded, position)
            start = position + 2
            (value_bytes,) = struct.unpack_from("=I", encoded, start + name_bytes)
            name = encoded[start : start + name_bytes].decode(errors="surrogateescape")
            position = start + name_bytes + 4
            value = None
            if value_bytes != lib.SL_NULL_BYTES:
                value = encoded[position : position + value_bytes]
                position += value_bytes
            if position > len(encoded):
                raise ValueError
            found.append((name, value))
    except (struct.error, ValueError):
        raise errors.CorruptRecordError("the headers of a record cannot be read") from None
    return found


def decode_kafka_headers(encoded: bytes) -> list[tuple[str, bytes | None]]:
    """Headers as a record of a batch v2 has them: a varint count, then names and values, each behind its length as a varint; length -1 is null."""
    try:
        count, position = _varint(encoded, 0)
        found: list[tuple[str, bytes | None]] = []
        for _ in range(count):
            name_bytes, position = _varint(encoded, position)
            name = encoded[position : position + name_bytes].decode(errors="surrogateescape")
            position += name_bytes
            value_bytes, position = _varint(encoded, position)
            value = None
            if value_bytes >= 0:
                value = encoded[position : position + value_bytes]
                position += value_bytes
            if name_bytes < 0 or position > len(encoded):
                raise ValueError
            found.append((name, value))
    except (IndexError, ValueError):
        raise errors.CorruptRecordError("the headers of a record cannot be read") from None
    return found


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A zigzag varint of at most 5 bytes, and where it ends."""
    raw = shift = 0
    while True:
        byte = data[position]
        position += 1
        raw |= (byte & 0x7F) << shift
        if byte < 0x80:
            return raw >> 1 ^ -(raw & 1), position
        shift += 7
        if shift > 28:
            raise ValueError
