"""``patched`` against the plainest possible model, a bytearray; and how much may be copied."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenkv.contract import Patch
from aspenkv.engine.mutations import check_copied, patched
from aspenkv.errors import CommitTooLargeError
from aspenkv.limits import COMMIT_COPIED_BYTES_MAX

small = st.integers(0, 12)


@given(
    value=st.binary(max_size=10),
    offset=small,
    data=st.binary(max_size=10),
    truncate_to=st.one_of(st.none(), small),
)
def test_patched_is_a_write_then_a_cut(
    value: bytes, offset: int, data: bytes, truncate_to: int | None
) -> None:
    model = bytearray(value)
    if data:
        model.extend(bytes(max(0, offset - len(model))))
        model[offset : offset + len(data)] = data
    if truncate_to is not None:
        del model[truncate_to:]
    for form in (data, memoryview(data)):
        result = patched(value, Patch(b"key", offset, form, truncate_to))
        assert type(result) is bytes
        assert result == model


def test_copies_are_bounded() -> None:
    check_copied(COMMIT_COPIED_BYTES_MAX)
    with pytest.raises(CommitTooLargeError):
        check_copied(COMMIT_COPIED_BYTES_MAX + 1)
