"""A real mount against tmpfs: the same random system calls, and the whole trees after each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.kernel import fresh_directory, without_present_times
from tests.model.machine import TwoFilesystems
from tests.model.tree import Tree, differences, take_tree
from tests.mount.mounts import run_aspenfs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.model.calls import Side
    from tests.mount.mounts import Mount

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
        self.close_all()


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
