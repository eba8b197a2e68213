"""The fields of a commit: its slot, then its checks and operations, each after its number. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from aspenkv.contract import (
    Add,
    Check,
    Copy,
    Delete,
    DeleteRange,
    Op,
    Patch,
    Put,
    RangeEmpty,
    RevisionIs,
    SlotUse,
)
from aspenkv.errors import RemoteProtocolError
from aspenkv.protocol.fields import BYTES, I64, OPTIONAL_U64, U64, VALUE, Row
from aspenkv.protocol.messages import Commit

_REVISION_IS: Final = 1
_RANGE_EMPTY: Final = 2
_PUT: Final = 3
_DELETE: Final = 4
_DELETE_RANGE: Final = 5
_PATCH: Final = 6
_ADD: Final = 7
_COPY: Final = 8

_CHECK_KINDS: Final[dict[type, int]] = {RevisionIs: _REVISION_IS, RangeEmpty: _RANGE_EMPTY}
_OP_KINDS: Final[dict[type, int]] = {
    Put: _PUT,
    Delete: _DELETE,
    DeleteRange: _DELETE_RANGE,
    Patch: _PATCH,
    Add: _ADD,
    Copy: _COPY,
}

_CHECKS: Final[dict[int, Row[Any]]] = {
    _REVISION_IS: Row(RevisionIs, key=BYTES, revision=U64),
    _RANGE_EMPTY: Row(RangeEmpty, start=BYTES, end=BYTES),
}
_OPS: Final[dict[int, Row[Any]]] = {
    _PUT: Row(Put, key=BYTES, value=VALUE, lease=U64),
    _DELETE: Row(Delete, key=BYTES),
    _DELETE_RANGE: Row(DeleteRange, start=BYTES, end=BYTES),
    _PATCH: Row(Patch, key=BYTES, offset=U64, data=VALUE, truncate_to=OPTIONAL_U64),
    _ADD: Row(Add, key=BYTES, delta=I64),
    _COPY: Row(Copy, key=BYTES, source=BYTES),
}

_SLOT_USE: Final = Row(SlotUse, slot=U64, sequence=U64)
_NO_SLOT: Final = (None, None)
_HEAD_FIELDS: Final = 3


def to_fields(commit: Commit) -> list[object]:
    """Return slot and sequence (or nil twice), the number of checks, then all parts.

    Raises:
        RemoteProtocolError: no server would take its slot, or a part of it.
    """
    checks, ops, slot = commit
    fields: list[object] = [*(slot or _NO_SLOT), len(checks)]
    if slot is not None:
        _SLOT_USE.check(slot)
    _add_parts(fields, checks, _CHECK_KINDS, _CHECKS)
    _add_parts(fields, ops, _OP_KINDS, _OPS)
    return fields


def from_fields(fields: Sequence[Any]) -> Commit:
    """Return the commit.

    Raises:
        RemoteProtocolError: the fields are those of no commit.
    """
    if len(fields) < _HEAD_FIELDS:
        raise RemoteProtocolError("a commit without slot, sequence and number of checks")
    slot, sequence, check_count = fields[:_HEAD_FIELDS]
    if not U64.allows(check_count):
        raise RemoteProtocolError(f"the number of a commit's checks is not {U64.described}")
    checks: list[Check] = []
    ops: list[Op] = []
    at = _HEAD_FIELDS
    while len(checks) < check_count:
        at = _read_part(fields, at, _CHECKS, checks)
    while at < len(fields):
        at = _read_part(fields, at, _OPS, ops)
    has_slot = slot is not None or sequence is not None
    return Commit(checks, ops, _SLOT_USE.read((slot, sequence)) if has_slot else None)


def _add_parts(
    fields: list[object],
    parts: Sequence[Check] | Sequence[Op],
    kinds: Mapping[type, int],
    rows: Mapping[int, Row[Any]],
) -> None:
    for part in parts:
        kind = kinds.get(type(part))
        if kind is None:
            raise RemoteProtocolError(f"{type(part).__name__} stands where it must not in a commit")
        rows[kind].check(part)
        fields.append(kind)
        fields += part


def _read_part(
    fields: Sequence[Any], at: int, rows: Mapping[int, Row[Any]], parts: list[Any]
) -> int:
    """Read the part whose number stands at ``at``; return where the next one's stands."""
    number = fields[at] if at < len(fields) else None
    row = rows.get(number) if type(number) is int else None
    if row is None:
        raise RemoteProtocolError(f"field {at} of a commit is the number of no part of it")
    end = at + 1 + row.width
    parts.append(row.read(fields[at + 1 : end]))
    return end
