"""The reference itself, against the kernel: a model that is wrong proves nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.model.calls import Side, run_now
from tests.model.inode_calls import InodeCalls
from tests.model.kernel import fresh_directory, without_present_times
from tests.model.machine import TwoFilesystems
from tests.model.model_fs import ModelFilesystem
from tests.model.tree import Tree


class ModelAndTmpfs(TwoFilesystems):
    """The model on the left, a directory of a tmpfs on the right."""

    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.left = Side(InodeCalls(ModelFilesystem(time.time_ns)), run_now)
        self.right = fresh_directory(self.root)

    def normalized(self, tree: Tree) -> Tree:
        return without_present_times(tree)

    def teardown(self) -> None:
        self.close_all()


@pytest.mark.mount  # a tmpfs, which takes the same rights
@pytest.mark.usefixtures("no_umask")
def test_the_model_does_as_tmpfs_does(tmpfs: Path) -> None:
    ModelAndTmpfs.root = tmpfs
    run_state_machine_as_test(ModelAndTmpfs)
