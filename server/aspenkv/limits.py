"""Every bound of the key-value contract, in one place.

The sizes follow etcd's request limits (128 operations and 1.5 MiB a transaction), so that what one
engine accepts every engine accepts.
"""

from typing import Final

KEY_BYTES_MAX: Final = 1024
VALUE_BYTES_MAX: Final = 1024 * 1024

COMMIT_OPS_MAX: Final = 128
COMMIT_CHECKS_MAX: Final = 128
COMMIT_BYTES_MAX: Final = 1536 * 1024

GET_KEYS_MAX: Final = 1024

SCAN_ENTRIES_MAX: Final = 1024
SCAN_BYTES_MAX: Final = 1024 * 1024

WATCHES_MAX: Final = 1024
WATCH_BACKLOG_EVENTS_MAX: Final = 8192
HISTORY_EVENTS_MAX: Final = 8192
HISTORY_CHANGES_MAX: Final = 65536

LEASES_MAX: Final = 4096
LEASE_KEYS_MAX: Final = 65536
LEASE_TTL_S_MIN: Final = 1.0
LEASE_TTL_S_MAX: Final = 3600.0

assert KEY_BYTES_MAX + VALUE_BYTES_MAX < COMMIT_BYTES_MAX, "the largest record must fit a commit"
assert KEY_BYTES_MAX + VALUE_BYTES_MAX < 2 * SCAN_BYTES_MAX, "a scan page holds one record at least"
