"""A real mount against tmpfs: the same random system calls, and the whole trees after each."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from tests.model.calls import Calls
from tests.model.kernel import fresh_directory, without_present_times
from tests.model.kernel_calls import KernelCalls
from tests.model.machine import (
    BYTES,
    Spot,
    TwoFilesystems,
    anywhere,
    lengths,
    numbers,
    offsets,
    seeds,
)
from tests.model.tree import Tree, differences, take_tree
from tests.mount.mounts import run_aspenfs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.model.calls import Side
    from tests.mount.mounts import Mount

DEFAULT_ACL: Final = b"system.posix_acl_default"
ACL_NAMES: Final = (b"system.posix_acl_access", DEFAULT_ACL)
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """Return an ACL of (tag, permissions, id) as linux/posix_acl_xattr.h lays it out."""
    return b"".join((struct.pack("<I", 2), *(struct.pack("<HHI", *entry) for entry in entries)))


ACLS: Final = (
    _acl((_USER_OBJ, 6, _NO_ID), (_GROUP_OBJ, 4, _NO_ID), (_OTHER, 0, _NO_ID)),
    _acl(
        (_USER_OBJ, 7, _NO_ID),
        (_USER, 5, 1234),
        (_GROUP_OBJ, 6, _NO_ID),
        (_GROUP, 7, 4321),
        (_MASK, 3, _NO_ID),
        (_OTHER, 1, _NO_ID),
    ),
    _acl((_USER_OBJ, 7, _NO_ID), (_GROUP_OBJ, 7, _NO_ID), (_MASK, 5, _NO_ID), (_OTHER, 7, _NO_ID)),
    _acl((_USER_OBJ, 7, _NO_ID), (_USER, 5, 1234), (_OTHER, 1, _NO_ID)),  # no mask, no group
    _acl(),
    b"\2\0\0",
    b"",
)

# Each step asks the kernel for the whole tree: some twenty times the cost of the core alone.
EXAMPLES_SHARE = 5


class MountAndTmpfs(TwoFilesystems):
    """A directory of the mount on the left, one of a tmpfs on the right.

    All examples of a run share the mount; their directories stay for the comparison at the end.
    """

    mount: Path
    tmpfs: Path
    examples: list[tuple[Side, Side]]

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = fresh_directory(self.mount), fresh_directory(self.tmpfs)
        self.examples.append((self.left, self.right))

    def normalized(self, tree: Tree) -> Tree:
        return without_present_times(tree)

    def teardown(self) -> None:
        os.umask(0)
        self.close_all()

    @rule(umask=st.sampled_from((0, 0o022, 0o077)))
    def change_umask(self, umask: int) -> None:
        if not any(DEFAULT_ACL in entry.xattrs for entry in self.tree.values()):
            os.umask(umask)

    @rule(spot=anywhere, name=st.sampled_from(ACL_NAMES), acl=st.sampled_from(ACLS))
    def set_acl(self, spot: Spot, name: bytes, acl: bytes) -> None:
        path = self.path(spot)
        if name == DEFAULT_ACL:
            os.umask(
                0
            )  # with FUSE it applies where there is a default ACL, too: docs/conformance.md
        self.both(lambda calls: calls.setxattr(path, name, acl, 0))

    @rule(spot=anywhere, name=st.sampled_from(ACL_NAMES))
    def remove_acl(self, spot: Spot, name: bytes) -> None:
        path = self.path(spot)
        self.both(lambda calls: calls.removexattr(path, name))

    @precondition(lambda self: self.handles)
    @rule(number=numbers, offset=offsets, length=lengths, seed=seeds)
    def map_and_write(self, number: int, offset: int, length: int, seed: int) -> None:
        data = BYTES[seed : seed + length]

        async def call(calls: Calls, handle: int) -> None:
            assert isinstance(calls, KernelCalls)
            with suppress(ValueError):  # Python maps no empty file
                await calls.map_and_write(handle, data, offset)

        self.both_handles(number, call)


@pytest.mark.mount
@pytest.mark.usefixtures("no_umask")
def test_a_mount_does_as_tmpfs_does(mounted: Mount, tmpfs: Path) -> None:
    MountAndTmpfs.mount, MountAndTmpfs.tmpfs = mounted.mountpoint, tmpfs
    MountAndTmpfs.examples = []
    profile = settings()
    run_state_machine_as_test(
        MountAndTmpfs,
        settings=settings(profile, max_examples=max(1, profile.max_examples // EXAMPLES_SHARE)),
    )
    mounted.end()
    check = run_aspenfs("fsck", "--data", mounted.data_dir)
    assert check.returncode == 0, check.stdout.decode()
    mounted.start()
    for left, right in MountAndTmpfs.examples:
        found = differences(
            without_present_times(left.run(take_tree(left.calls))),
            without_present_times(right.run(take_tree(right.calls))),
        )
        assert not found, "after unmounting and mounting: " + "\n".join(found)
