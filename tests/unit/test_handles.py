from __future__ import annotations

import errno

import pytest

from aspenfs import limits
from aspenfs.errors import FilesystemError
from aspenfs.handles import HandleTable
from aspenfs.types import FileHandle


def test_a_handle_stands_for_what_was_opened_until_it_is_removed() -> None:
    table = HandleTable[str]()
    first, second = table.add("a"), table.add("b")
    assert (table.get(first), table.get(second)) == ("a", "b")
    assert len(table) == 2
    assert table.remove(first) == "a"
    assert list(table) == ["b"]
    for use in (table.get, table.remove):
        with pytest.raises(FilesystemError) as caught:
            use(first)
        assert caught.value.errno == errno.EBADF


def test_a_handle_is_never_given_twice() -> None:
    table = HandleTable[str]()
    first = table.add("a")
    table.remove(first)
    assert table.add("b") > first


def test_an_unknown_handle_is_bad() -> None:
    with pytest.raises(FilesystemError, match="EBADF"):
        HandleTable[str]().get(FileHandle(7))


def test_what_is_open_may_change_during_an_iteration() -> None:
    table = HandleTable[str]()
    handle = table.add("a")
    table.add("b")
    seen = []
    for opened in table:
        seen.append(opened)
        if opened == "a":
            table.remove(handle)
    assert seen == ["a", "b"]


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OPEN_HANDLES_MAX", 2)
    table = HandleTable[str]()
    table.add("a")
    handle = table.add("b")
    with pytest.raises(FilesystemError, match="ENFILE"):
        table.add("c")
    table.remove(handle)
    table.add("c")
