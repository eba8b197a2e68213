"""Mode, owner, times and size: setattr, and what it does beside what it was asked."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from aspenfs import acl, limits
from aspenfs.filesystem import Filesystem
from aspenfs.metadata import clamp_ns
from aspenfs.types import ROOT_INO, AttributeChanges, Attributes
from aspenkv.errors import OutcomeUnknownError
from tests.core.steering import (
    NOBODYS_HANDLE,
    NOBODYS_INO,
    ROOT,
    SteeredClient,
    dirty_bytes,
    failing,
    make_file,
    opened,
    read_file,
    refused,
)

SET_IDS = stat.S_ISUID | stat.S_ISGID


async def set_(fs: Filesystem, ino: int, **changes: int) -> Attributes:
    """Change attributes and check that a look at the inode shows what setattr returned."""
    shown = await fs.setattr(fs_ino := (await fs.getattr(ino)).ino, AttributeChanges(**changes))  # type: ignore[arg-type]
    assert await fs.getattr(fs_ino) == shown
    return shown


@pytest.fixture
async def file(fs: Filesystem) -> Attributes:
    return await fs.mknod(ROOT_INO, b"file", stat.S_IFREG | 0o644, 0, ROOT)


async def test_the_mode_changes_but_not_the_type(fs: Filesystem, file: Attributes) -> None:
    shown = await set_(fs, file.ino, mode=stat.S_IFDIR | 0o7751)
    assert shown.mode == stat.S_IFREG | 0o7751
    assert shown.mtime_ns == file.mtime_ns
    assert shown.ctime_ns > file.ctime_ns


async def test_owner_and_group(fs: Filesystem, file: Attributes) -> None:
    assert (await set_(fs, file.ino, uid=5)).gid == 0
    shown = await set_(fs, file.ino, gid=2**32 - 2)
    assert (shown.uid, shown.gid) == (5, 2**32 - 2)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (0o6755, 0o755),
        (0o6711, 0o711),
        (0o6644, 0o2644),  # without group execution it asks for mandatory locking
    ],
)
async def test_a_change_of_owner_clears_the_set_id_bits(
    fs: Filesystem, file: Attributes, mode: int, expected: int
) -> None:
    await set_(fs, file.ino, mode=mode)
    assert stat.S_IMODE((await set_(fs, file.ino, gid=1)).mode) == expected


async def test_a_change_of_owner_leaves_a_directory_its_bits(fs: Filesystem) -> None:
    made = await fs.mkdir(ROOT_INO, b"directory", 0o6775, ROOT)
    assert stat.S_IMODE((await set_(fs, made.ino, uid=1)).mode) == 0o6775


async def test_a_mode_given_with_an_owner_holds(fs: Filesystem, file: Attributes) -> None:
    shown = await set_(fs, file.ino, uid=1, mode=0o4755)
    assert (shown.uid, stat.S_IMODE(shown.mode)) == (1, 0o4755)


@pytest.mark.parametrize("time_ns", [0, 1, -1, -(10**18), 2**62 * 10**9, 1_600_000_000_123_456_789])
async def test_times_are_exact_to_the_nanosecond(
    fs: Filesystem, file: Attributes, time_ns: int
) -> None:
    shown = await set_(fs, file.ino, atime_ns=time_ns, mtime_ns=time_ns - 1)
    assert (shown.atime_ns, shown.mtime_ns) == (time_ns, time_ns - 1)
    assert shown.ctime_ns > file.ctime_ns
    assert (await set_(fs, file.ino, ctime_ns=time_ns)).ctime_ns == time_ns


async def test_times_beyond_the_record_are_clamped(fs: Filesystem, file: Attributes) -> None:
    shown = await set_(fs, file.ino, atime_ns=2**100, mtime_ns=-(2**100))
    assert (shown.atime_ns, shown.mtime_ns) == (clamp_ns(2**100), clamp_ns(-(2**100)))


async def test_one_time_is_changed_and_the_other_kept(fs: Filesystem, file: Attributes) -> None:
    shown = await set_(fs, file.ino, atime_ns=5)
    assert (shown.atime_ns, shown.mtime_ns) == (5, file.mtime_ns)
    shown = await set_(fs, file.ino, mtime_ns=6)
    assert (shown.atime_ns, shown.mtime_ns) == (5, 6)


async def test_a_change_is_one_commit(
    fs: Filesystem, store: SteeredClient, file: Attributes
) -> None:
    store.commits.clear()
    await set_(fs, file.ino, mode=0o600, uid=1, gid=2, atime_ns=3, mtime_ns=4)
    assert len(store.commits) == 1


async def test_a_time_that_was_set_outlasts_bytes_written_before(fs: Filesystem) -> None:
    ino = await make_file(fs, b"written")
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"before")
        shown = await fs.setattr(ino, AttributeChanges(mtime_ns=7), fh)
        assert (shown.mtime_ns, shown.size) == (7, 6)
    assert (await fs.getattr(ino)).mtime_ns == 7


# --- beside bytes that wait -----------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"bytes", bytes(3 * limits.COMMIT_DATA_BYTES_MAX)])
async def test_a_change_comes_with_the_last_bytes(
    fs: Filesystem, store: SteeredClient, file: Attributes, content: bytes
) -> None:
    async with opened(fs, file.ino) as fh:
        await fs.write(fh, 0, content)
        store.commits.clear()
        shown = await set_(fs, file.ino, mode=0o600, uid=1, mtime_ns=4)
        assert len(store.commits) == max(1, len(content) // limits.COMMIT_DATA_BYTES_MAX)
        assert dirty_bytes(fs) == 0
    assert (shown.size, shown.mode, shown.uid, shown.mtime_ns) == (
        len(content),
        stat.S_IFREG | 0o600,
        1,
        4,
    )
    assert await fs.getattr(file.ino) == shown
    assert await read_file(fs, file.ino) == content


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (AttributeChanges(mode=0o6755), 0o6755),  # after the write, which clears the bits
        (AttributeChanges(uid=1), 0o755),
        (AttributeChanges(atime_ns=1, ctime_ns=2), 0o755),
    ],
)
async def test_the_set_id_bits_beside_bytes_of_one_who_may_not_keep_them(
    fs: Filesystem, file: Attributes, changes: AttributeChanges, expected: int
) -> None:
    await fs.setattr(file.ino, AttributeChanges(mode=0o6755))
    fh = await fs.open(file.ino, os.O_WRONLY, drops_set_id=True)
    await fs.write(fh, 0, b"bytes")
    assert stat.S_IMODE((await fs.setattr(file.ino, changes)).mode) == expected
    await fs.release(fh)
    assert stat.S_IMODE((await fs.getattr(file.ino)).mode) == expected


async def test_a_mode_that_is_set_beside_bytes_changes_the_acl(
    fs: Filesystem, file: Attributes
) -> None:
    entries = (
        acl.Entry(acl.USER_OBJ, 6),
        acl.Entry(acl.USER, 6, 1000),
        acl.Entry(acl.GROUP_OBJ, 4),
        acl.Entry(acl.MASK, 6),
        acl.Entry(acl.OTHER, 4),
    )
    await fs.setxattr(file.ino, acl.ACCESS_XATTR, acl.encode(entries))
    async with opened(fs, file.ino) as fh:
        await fs.write(fh, 0, b"bytes")
        await fs.setattr(file.ino, AttributeChanges(mode=0o640))
        stored = acl.parse(await fs.getxattr(file.ino, acl.ACCESS_XATTR))
        assert stored == acl.chmod(entries, 0o640)
        assert dirty_bytes(fs) == 0


async def test_a_change_beside_bytes_is_made_on_what_another_client_changed_meanwhile(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, file: Attributes
) -> None:
    async def theirs() -> None:
        await peer.setattr(file.ino, AttributeChanges(uid=9, atime_ns=9))

    async with opened(fs, file.ino) as fh:
        await fs.write(fh, 0, b"bytes")
        store.before_commit.append(theirs)
        shown = await fs.setattr(file.ino, AttributeChanges(mode=0o600))
    assert (shown.mode, shown.uid, shown.atime_ns) == (stat.S_IFREG | 0o600, 9, 9)
    assert await fs.getattr(file.ino) == shown


@pytest.mark.parametrize("was_done", [True, False])
async def test_a_change_beside_bytes_whose_answer_is_lost(
    fs: Filesystem, store: SteeredClient, file: Attributes, was_done: bool
) -> None:
    unknown = failing(OutcomeUnknownError("the answer was lost"))
    async with opened(fs, file.ino) as fh:
        await fs.write(fh, 0, b"bytes")
        (store.after_commit if was_done else store.before_commit).append(unknown)
        with refused(errno.EIO):
            await fs.setattr(file.ino, AttributeChanges(mode=0o600))
        assert dirty_bytes(fs) == 5
        await fs.flush(fh)
    expected = 0o600 if was_done else 0o644
    assert stat.S_IMODE((await fs.getattr(file.ino)).mode) == expected
    assert await read_file(fs, file.ino) == b"bytes"


@pytest.mark.parametrize("answer_is_lost", [True, False])
async def test_a_change_comes_after_an_append_and_not_with_it(
    fs: Filesystem, store: SteeredClient, file: Attributes, answer_is_lost: bool
) -> None:
    async with opened(fs, file.ino, os.O_WRONLY | os.O_APPEND) as fh:
        await fs.write(fh, 0, b"appended")
        if answer_is_lost:
            store.after_commit.append(failing(OutcomeUnknownError("the answer was lost")))
            with refused(errno.EIO):
                await fs.flush(fh)
        store.commits.clear()
        shown = await set_(fs, file.ino, mode=0o600, mtime_ns=4)
        assert len(store.commits) == (1 if answer_is_lost else 2)
    assert (shown.size, shown.mode, shown.mtime_ns) == (8, stat.S_IFREG | 0o600, 4)
    assert await read_file(fs, file.ino) == b"appended"


async def test_bytes_written_do_not_turn_the_ctime_back(fs: Filesystem) -> None:
    ino = await make_file(fs, b"old")
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"bytes")
        await fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
        renamed = await fs.getattr(ino)
        await fs.fsync(fh)
        assert (await fs.getattr(ino)).ctime_ns >= renamed.ctime_ns


async def test_the_size_is_set_before_the_rest(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"content")
    shown = await fs.setattr(ino, AttributeChanges(size=3, mtime_ns=9, mode=0o600))
    assert (shown.size, shown.mtime_ns, shown.mode) == (3, 9, stat.S_IFREG | 0o600)
    assert await read_file(fs, ino) == b"con"


async def test_a_new_size_touches_the_file(fs: Filesystem, file: Attributes) -> None:
    shown = await set_(fs, file.ino, size=0)
    assert shown.mtime_ns == shown.ctime_ns > file.ctime_ns


async def test_what_setattr_refuses(fs: Filesystem, file: Attributes) -> None:
    for changes in (AttributeChanges(mode=0o600), AttributeChanges(size=1)):
        with refused(errno.ESTALE):
            await fs.setattr(NOBODYS_INO, changes)
    with refused(errno.EINVAL):
        await fs.setattr(file.ino, AttributeChanges(size=-1))
    with refused(errno.EFBIG):
        await fs.setattr(file.ino, AttributeChanges(size=limits.FILE_BYTES_MAX + 1))
    with refused(errno.EISDIR):
        await fs.setattr(ROOT_INO, AttributeChanges(size=0))
    link = await fs.symlink(ROOT_INO, b"link", b"target", ROOT)
    with refused(errno.EINVAL):
        await fs.setattr(link.ino, AttributeChanges(size=0))
    with refused(errno.EBADF):
        await fs.setattr(file.ino, AttributeChanges(size=0), NOBODYS_HANDLE)
    directory = await fs.opendir(ROOT_INO)
    with refused(errno.EBADF):
        await fs.setattr(file.ino, AttributeChanges(size=0), directory)
    await fs.releasedir(directory)


async def test_a_write_clears_the_set_id_bits_where_the_kernel_leaves_it_to_us(
    fs: Filesystem,
) -> None:
    ino = await make_file(fs, b"file", b"content")
    for clears, expected in ((False, 0o6755), (True, 0o755)):
        await fs.setattr(ino, AttributeChanges(mode=0o6755))
        fh = await fs.open(ino, os.O_WRONLY, drops_set_id=clears)
        await fs.write(fh, 0, b"C")
        await fs.release(fh)
        assert stat.S_IMODE((await fs.getattr(ino)).mode) == expected


async def test_one_who_may_keep_the_set_id_bits_keeps_them_beside_one_who_may_not(
    fs: Filesystem,
) -> None:
    ino = await make_file(fs, b"file", b"content")
    clears = await fs.open(ino, os.O_WRONLY, drops_set_id=True)
    await fs.write(clears, 0, b"C")
    await fs.flush(clears)
    await fs.setattr(ino, AttributeChanges(mode=0o4755))
    async with opened(fs, ino) as keeps:
        await fs.write(keeps, 0, b"c")
        assert stat.S_IMODE((await fs.getattr(ino)).mode) == 0o4755
        await fs.flush(keeps)
    assert stat.S_IMODE((await fs.getattr(ino)).mode) == 0o4755
    await fs.write(clears, 0, b"C")
    assert stat.S_IMODE((await fs.getattr(ino)).mode) == 0o755
    await fs.release(clears)
