"""Bytes ↔ the flat row of scalars that every frame is. Pure.

A frame is one msgpack array: the protocol's version, then integers, floats, booleans, nil, byte
strings and texts. There is nothing in it to nest. So a decoder allocates at most FRAME_FIELDS_MAX
fields, no more than the frame has bytes, and no more bytes of values than the frame has, whatever
lengths it claims.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final, NoReturn

import msgpack

from aspenkv.errors import ProtocolVersionError, RemoteProtocolError
from aspenkv.limits import FRAME_FIELDS_MAX

VERSION: Final = 1


def pack(fields: Iterable[object]) -> bytes:
    """Return the frame of a row.

    Raises:
        OverflowError, TypeError, ValueError: a field is out of range, or of a type that no frame
            has.
    """
    packed: bytes = msgpack.packb((VERSION, *fields))
    return packed


def unpack(frame: bytes | bytearray | memoryview, bytes_max: int) -> tuple[Any, ...]:
    """Return the fields of a frame of at most ``bytes_max`` bytes, without its version.

    Byte strings are copied into ``bytes``, once on the way through msgpack's own buffer.

    Raises:
        RemoteProtocolError: it is too long, cut off, no flat array, or has too many fields.
        ProtocolVersionError: it is of another version.
    """
    size = len(frame)
    if not 0 < size <= bytes_max:
        raise RemoteProtocolError(f"a frame of {size} bytes: 1 to {bytes_max} are allowed")
    # Arrays and maps may be empty at most, and those are refused by their type later on.
    unpacker = msgpack.Unpacker(
        read_size=size,
        max_buffer_size=size,
        use_list=False,
        max_array_len=0,
        max_map_len=0,
        max_ext_len=0,
        ext_hook=_refuse_extension,
    )
    unpacker.feed(frame)
    try:
        # Reads no more than the header, so that nothing is allocated for what it claims.
        count = unpacker.read_array_header()
        version = next(unpacker, None)
        fields = tuple(islice(unpacker, min(count, FRAME_FIELDS_MAX) - 1)) if count else ()
    # The bases of all that msgpack raises for damaged input, and of what str decoding raises.
    except (ValueError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"a frame is no flat msgpack array: {error}") from error
    if type(version) is int and version != VERSION:
        raise ProtocolVersionError(f"version {version} of the protocol is not spoken here")
    if type(version) is not int or 1 + len(fields) != count or unpacker.tell() != size:
        raise RemoteProtocolError(
            "a frame has no version, too many fields, or not as many as it says"
        )
    return fields


def _refuse_extension(code: int, _data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code}")
