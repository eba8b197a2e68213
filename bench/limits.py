"""Every bound of the benchmark, in one place."""

from typing import Final

MOUNT_TIMEOUT_S: Final = 30.0
READY_POLL_MS: Final = 20  # between two looks at a server that announces nothing
UNMOUNT_TIMEOUT_S: Final = 120.0  # a peer may have much to write back
COMMAND_TIMEOUT_S: Final = 600.0  # tar, git and a peer's own preparations

SMALL_FILES: Final = 2_000
SMALL_FILE_BYTES: Final = 4096
LARGE_FILE_MIB: Final = 256
LARGE_IO_BYTES: Final = 1024 * 1024  # what cp and dd of today use, or more
RANDOM_IO_BYTES: Final = 4096
RANDOM_IOS: Final = 4_000
TREE_FILES_MAX: Final = 3_000

NOISE: Final = 0.1  # two rounds on one machine differ by as much
REPORT_COLUMNS: Final = 132  # where no terminal says how wide it is

RESIDENT_FILE_MIB: Final = 4 * 1024
RESIDENT_MIB_MAX: Final = 300  # the goal for the mount process after writing RESIDENT_FILE_MIB
