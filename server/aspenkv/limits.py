"""Every bound of the key-value contract, in one place.

The sizes follow etcd's request limits (128 operations and 1.5 MiB a transaction), so that what one
engine accepts every engine accepts.
"""

from typing import Final

KEY_BYTES_MAX: Final = 1024
VALUE_BYTES_MAX: Final = 1024 * 1024
RANGE_BOUND_BYTES_MAX: Final = KEY_BYTES_MAX + 1  # the successor of the longest key is key + NUL
COUNTER_MIN: Final = -(2**63)
COUNTER_MAX: Final = 2**63 - 1

COMMIT_OPS_MAX: Final = 128
COMMIT_CHECKS_MAX: Final = 128
COMMIT_BYTES_MAX: Final = 1536 * 1024

GET_KEYS_MAX: Final = 1024
READ_ATTEMPTS_MAX: Final = 64  # of values that are overwritten each time while they are read

SCAN_ENTRIES_MAX: Final = 1024
SCAN_BYTES_MAX: Final = 1024 * 1024

WATCHES_MAX: Final = 1024
WATCH_BACKLOG_EVENTS_MAX: Final = 8192
HISTORY_EVENTS_MAX: Final = 8192
HISTORY_CHANGES_MAX: Final = 65536
HISTORY_BYTES_MAX: Final = 16 * 1024 * 1024  # of keys; history keeps no values
WATCH_BACKLOG_BYTES_MAX: Final = 8 * 1024 * 1024  # of values, in a watch that asked for them

LEASES_MAX: Final = 4096
LEASE_KEYS_MAX: Final = 65536  # on all leases of a server together
LEASE_ID_MAX: Final = 2**63 - 1  # random, so that a number never comes back; fits a signed i64
LEASE_REMOVAL_RETRY_S: Final = 1.0  # after the engine failed to remove lapsed leases
LEASE_TTL_S_MIN: Final = 1.0
LEASE_TTL_S_MAX: Final = 3600.0

# What runs inline on the event loop's thread takes about 0.2 ms at most; the rest runs in threads.
INLINE_COMMIT_BYTES_MAX: Final = 128 * 1024  # written, and as many read to be patched
INLINE_GET_KEYS_MAX: Final = 128
INLINE_SCAN_ENTRIES_MAX: Final = 256
INLINE_SKIPS_MAX: Final = 2048  # deleted keys that a check or scan may step over
INLINE_RANGE_DELETE_KEYS_MAX: Final = 64

RANGE_DELETE_KEYS_MAX: Final = 1024  # more get one range tombstone, which slows reads beside it
BLOB_GARBAGE_LOOK_BYTES: Final = 64 * 1024 * 1024  # written before garbage is looked for again
RECLAIM_BYTES_MIN: Final = 64 * 1024 * 1024  # of deleted large values, before they are compacted
RESERVED_BYTES: Final = 128 * 1024 * 1024  # of a disk; what rocksdb writes to carry out deletions
SPACE_CHECK_BYTES: Final = 4 * 1024 * 1024  # written between two looks at the free space
ENGINE_THREADS_MAX: Final = 8  # calls of one engine that block at the same time

MEMORY_CAPACITY_BYTES: Final = 1 << 30  # what the memory engine says it holds, not a bound

assert KEY_BYTES_MAX + VALUE_BYTES_MAX < COMMIT_BYTES_MAX, "the largest record must fit a commit"
assert KEY_BYTES_MAX + VALUE_BYTES_MAX < 2 * SCAN_BYTES_MAX, "a scan page holds one record at least"
