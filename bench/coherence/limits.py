"""Every bound of the benchmark of coherence, in one place."""

from typing import Final

SEEN_TIMEOUT_S: Final = 30.0  # for a change to show; longer than any time to live
POLL_S: Final = 0.0002  # between two looks; so precise is what is measured

HOT_FILES: Final = 200
HOT_FILE_MIB: Final = 100  # far above the read cache of the mount: it is the kernel that keeps it
SMALL_FILE_BYTES: Final = 1000

TAIL_INTERVAL_S: Final = 0.01  # of `tail -f`, which looks so often

SEEN_MEDIAN_MS_MAX: Final = 5.0
SEEN_MS_MAX: Final = 20.0
TAIL_MS_MAX: Final = 50.0
HOT_RATIO_MIN: Final = 0.5  # of tmpfs
