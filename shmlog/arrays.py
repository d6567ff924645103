"""How an array's type travels with its record: the dtype extension of a frame (SL_FF_HAS_DTYPE).

    u16 ndim | u16 bytes of the dtype's text | u64 shape[ndim] | text | zeros up to a multiple of 4        (native byte order)

The text is numpy's: ``dtype.str`` ("<f8", "<M8[ns]") or, for a structured dtype, its list of fields as Python writes it ("[('x', '<i4'), ...]"), as in
.npy files. It carries its own byte order, so that a file read on another machine still means the same. In an array frame, whose rows are
records, the extension describes one row.

numpy is imported by the functions that make or take dtypes, and not before: a program that only sends bytes never pays for it. What a reader gets was
written by somebody else: decode() checks every length, and the text is parsed as a literal, never evaluated.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from shmlog.errors import CorruptRecordError, IllegalArgumentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

MAX_NDIM = 64  # numpy's own limit
MAX_TEXT_BYTES = 32 * 1024  # extension_bytes of a frame is 16 bits, and there are other extensions beside this one

_HEAD = struct.Struct("=HH")


def text_of(dtype: np.dtype[Any]) -> str:
    """The text that parse() turns into an equal dtype. TypeError for what holds Python objects: their bytes mean nothing to another process."""
    if dtype.hasobject:
        raise IllegalArgumentError(f"dtype {dtype} holds Python objects, which only this process can read; use a fixed-size dtype")
    if dtype.names is None and dtype.subdtype is None and dtype.kind != "V":
        return dtype.str
    from numpy.lib.format import dtype_to_descr

    descr = dtype_to_descr(dtype)
    return descr if isinstance(descr, str) else repr(descr)


@lru_cache(maxsize=256)
def parse(text: str) -> np.dtype[Any]:
    """The dtype of a text made by text_of(); CorruptRecordError for any other text."""
    import ast

    import numpy as np
    from numpy.lib.format import descr_to_dtype

    try:
        dtype = descr_to_dtype(ast.literal_eval(text)) if text[:1] in "[(" else np.dtype(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise CorruptRecordError(f"the dtype of a record cannot be read: {text[:80]!r}") from error
    if dtype.hasobject:
        raise CorruptRecordError(f"the dtype of a record names Python objects: {text[:80]!r}")
    return dtype


def encode(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The extension for one record (or one row) of this dtype and shape."""
    return _encode(dtype, shape)


@lru_cache(maxsize=256)
def _encode(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    text = text_of(dtype).encode()
    if len(text) > MAX_TEXT_BYTES:
        raise IllegalArgumentError(f"a dtype of {len(text)} bytes of text is too long; at most {MAX_TEXT_BYTES}")
    encoded = _HEAD.pack(len(shape), len(text)) + struct.pack(f"={len(shape)}Q", *shape) + text
    return encoded + bytes(-len(encoded) % 4)


@lru_cache(maxsize=256)
def decode(extension: bytes) -> tuple[str, tuple[int, ...]]:
    """(text, shape) of an extension. CorruptRecordError if its lengths do not fit."""
    if len(extension) < _HEAD.size:
        raise CorruptRecordError(f"a dtype extension of {len(extension)} bytes is too short")
    ndim, text_bytes = _HEAD.unpack_from(extension)
    end = _HEAD.size + 8 * ndim + text_bytes
    if ndim > MAX_NDIM or end > len(extension):
        raise CorruptRecordError(f"a dtype extension of {len(extension)} bytes cannot hold {ndim} dimensions and {text_bytes} bytes of text")
    shape = struct.unpack_from(f"={ndim}Q", extension, _HEAD.size)
    try:
        return extension[_HEAD.size + 8 * ndim : end].decode(), shape
    except UnicodeDecodeError as error:
        raise CorruptRecordError("the dtype of a record is not text") from error


def is_array(value: object) -> bool:
    """Whether value is a numpy array, without importing numpy for a program that has none."""
    import sys

    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def contiguous(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array in C order and one piece: itself if it is so, else a copy. Rejects dtypes that hold Python objects, and masks, which would be lost.
    A subclass becomes its ndarray: what callers do with it (reshape, view, len) may mean something else to the subclass, as to numpy.matrix."""
    import numpy as np

    if type(array) is not np.ndarray:
        if isinstance(array, np.ma.MaskedArray):
            raise IllegalArgumentError("a masked array's mask does not travel with it; send array.filled(), or data and mask as two records")
        array = array.view(np.ndarray)
    if array.dtype.hasobject:
        text_of(array.dtype)  # raises
    if array.flags.c_contiguous:
        return array
    return np.ascontiguousarray(array) if array.ndim else array.copy()


def item_bytes(dtype: DTypeLike, shape: tuple[int, ...]) -> tuple[np.dtype[Any], int]:
    """(dtype, bytes that an array of this dtype and shape takes). ValueError for negative dimensions."""
    import math

    import numpy as np

    made = np.dtype(dtype)
    if made.subdtype is not None:
        raise IllegalArgumentError(f"dtype {made} is an array of its own; put its dimensions into shape")
    if any(n < 0 for n in shape):
        raise IllegalArgumentError(f"shape {shape} has a negative dimension")
    return made, math.prod(shape) * made.itemsize
