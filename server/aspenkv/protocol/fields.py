"""The types of a frame's fields, and how whole rows of them are checked. Pure.

A row's types are compared with all that are allowed at once, and only then its values one by one:
that costs a fraction of a microsecond, also for the most frequent messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from types import NoneType
from typing import Any, Final, Generic, TypeVar

from aspenkv.errors import RemoteProtocolError
from aspenkv.limits import COUNTER_MAX, ERROR_MESSAGE_BYTES_MAX, TEXT_BYTES_MAX

T = TypeVar("T", bound=tuple[Any, ...])


class Field:
    """What one field may be: its exact types (bool is no int), and what its value must fulfil."""

    __slots__ = ("described", "holds", "types")

    def __init__(
        self, described: str, *types: type, holds: Callable[[Any], bool] | None = None
    ) -> None:
        """``described`` completes the sentence "this is not ..."."""
        self.described = described
        self.types = frozenset(types)
        self.holds = holds

    def allows(self, value: object) -> bool:
        """Return whether a field may have this value."""
        return type(value) in self.types and (self.holds is None or self.holds(value))


def bytes_of(size: int) -> Field:
    """Return a field of exactly ``size`` bytes."""
    return Field(f"a string of {size} bytes", bytes, holds=lambda value: len(value) == size)


def _is_natural_or_none(value: int | None) -> bool:
    return value is None or value >= 0


def _is_finite_or_none(value: float | None) -> bool:
    return value is None or math.isfinite(value)


def _is_span(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _is_i64(value: int) -> bool:
    return value <= COUNTER_MAX


def _is_text(value: str) -> bool:
    # Printable, because it is shown on terminals and written to logs. No surrogate is printable,
    # so all that is can be encoded.
    return value.isprintable() and len(value.encode()) <= TEXT_BYTES_MAX


def _is_error_text(value: str) -> bool:
    return len(value.encode()) <= ERROR_MESSAGE_BYTES_MAX


# msgpack's integers end at -2**63 and at 2**64 - 1; what is not checked here is its range.
U64: Final = Field("an unsigned integer", int, holds=(0).__le__)
I64: Final = Field("a signed 64-bit integer", int, holds=_is_i64)
OPTIONAL_U64: Final = Field("an unsigned integer or nil", int, NoneType, holds=_is_natural_or_none)
REAL: Final = Field("a finite number", float, int, holds=math.isfinite)
SPAN_S: Final = Field("a finite number of seconds, at least 0", float, int, holds=_is_span)
OPTIONAL_REAL: Final = Field(
    "a finite number or nil", float, int, NoneType, holds=_is_finite_or_none
)
BOOL: Final = Field("a boolean", bool)
BYTES: Final = Field("a byte string", bytes)
VALUE: Final = Field("a byte string", bytes, memoryview)  # memoryview only on its way out
OPTIONAL_BYTES: Final = Field("a byte string or nil", bytes, NoneType)
BYTES_16: Final = bytes_of(16)
BYTES_32: Final = bytes_of(32)
ERROR_TEXT: Final = Field(
    f"a text of up to {ERROR_MESSAGE_BYTES_MAX} bytes", str, holds=_is_error_text
)
TEXT: Final = Field(f"a printable text of up to {TEXT_BYTES_MAX} bytes", str, holds=_is_text)


class Row(Generic[T]):
    """The fields of one message, in order; reads and checks rows of them."""

    __slots__ = ("_fields", "_make", "_name", "_shapes", "_tests", "width")

    def __init__(self, message: type[T], /, **fields: Field) -> None:
        """Describe every field of the named tuple ``message``."""
        assert list(fields) == list(message.__annotations__), f"{message.__name__} has others"
        self._name = message.__name__
        # What a named tuple's _make does, but that the width was checked before.
        self._make: Callable[[Iterable[Any]], T] = partial(tuple.__new__, message)
        self._fields = fields
        self._shapes = frozenset(product(*(field.types for field in fields.values())))
        self._tests = tuple(
            (index, field.holds) for index, field in enumerate(fields.values()) if field.holds
        )
        self.width = len(fields)

    def check(self, values: Sequence[object]) -> None:
        """Check one row.

        Raises:
            RemoteProtocolError: it has too many fields, too few, or another type or value than
                allowed.
        """
        if tuple(map(type, values)) not in self._shapes:
            raise self._fault(values)
        for index, holds in self._tests:
            if not holds(values[index]):
                raise self._fault(values)

    def read(self, values: Sequence[object]) -> T:
        """Return the message of one row. Raises RemoteProtocolError as :meth:`check` does."""
        self.check(values)
        return self._make(values)

    def read_many(self, values: Sequence[object]) -> list[T]:
        """Return the messages of rows that follow each other, checked column by column.

        Raises:
            RemoteProtocolError: as :meth:`check` does, or the last row is cut off.
        """
        if len(values) % self.width:
            raise RemoteProtocolError(f"the last {self._name} is cut off")
        columns = [values[index :: self.width] for index in range(self.width)]
        for column, (name, field) in zip(columns, self._fields.items(), strict=True):
            if not field.types.issuperset(map(type, column)) or (
                field.holds is not None and not all(map(field.holds, column))
            ):
                raise self._wrong(name)
        return list(map(self._make, zip(*columns, strict=True)))

    def _fault(self, values: Sequence[object]) -> RemoteProtocolError:
        if len(values) != self.width:
            return RemoteProtocolError(
                f"{self._name} has {self.width} fields, and {len(values)} came"
            )
        return next(
            self._wrong(name)
            for (name, field), value in zip(self._fields.items(), values, strict=True)
            if not field.allows(value)
        )

    def _wrong(self, name: str) -> RemoteProtocolError:
        return RemoteProtocolError(f"{self._name}.{name} is not {self._fields[name].described}")
