"""Every bound of the filesystem, in one place, with where it comes from."""

from typing import Final

from aspenkv import limits as kv_limits

NAME_BYTES_MAX: Final = 255  # NAME_MAX, linux/limits.h
SYMLINK_BYTES_MAX: Final = 4095  # PATH_MAX less the final NUL
FILE_BYTES_MAX: Final = 2**63 - 1  # off_t
STATFS_BLOCK_BYTES: Final = 4096  # f_frsize
NLINK_MAX: Final = 2**31 - 1
XATTR_NAME_BYTES_MAX: Final = 255  # XATTR_NAME_MAX, linux/limits.h
XATTR_VALUE_BYTES_MAX: Final = 65536  # XATTR_SIZE_MAX
XATTR_LIST_BYTES_MAX: Final = 65536  # XATTR_LIST_MAX
VOLUME_NAME_BYTES_MAX: Final = 64

CHUNK_BYTES: Final = 64 * 1024  # measured: docs/decisions/0001-chunk-size.md
INLINE_BYTES_MAX: Final = 4096  # a file up to this size lives in its inode record

READ_CACHE_TTL_S: Final = 5.0
READ_CACHE_ENTRIES_MAX: Final = 1000
READ_CACHE_BYTES_MAX: Final = 64 * 1024 * 1024
META_CACHE_TTL_S: Final = 2.0
META_CACHE_ENTRIES_MAX: Final = 5000
SCAN_CACHE_TTL_S: Final = 1.0
SCAN_CACHE_ENTRIES_MAX: Final = 500
LOOKUP_RUNS_MAX: Final = 64  # directories in which lookups may go upward at the same time
LOOKUP_BEGINNING: Final = 64  # names, with inodes, read at the second lookup in a directory
LOOKUP_MISSES_MAX: Final = 5  # lookups in any order, before all names of a directory are read
LOOKUP_NAMES_MAX: Final = 8192  # of which then at most so many; half a MiB
LOOKUP_AHEAD_GROWTH: Final = 4
LOOKUP_AHEAD_MAX: Final = 128  # with inodes of small files, whose bytes are in them, about 0.5 MiB
NAMES_CACHE_ENTRIES_MAX: Final = 2000  # directories all of whose names are known
NAMES_CACHE_BYTES_MAX: Final = 12 * 1024 * 1024
KNOWN_NAME_BYTES: Final = 128  # what a name of usual length takes in a set
CACHE_EVENT_KEYS_MAX: Final = 2048  # changes during one read that a fill can be checked against
CACHE_EVENT_RANGES_MAX: Final = 64  # the same for ranges; each check walks the newer ones

WAY_UP_MAX: Final = 64  # directories above a moved one that are read in one call

LATE_COMMIT_S: Final = 60.0  # in which a commit whose caller gave up is done, if it ever is
WATCH_CATCH_UP_S: Final = 0.1  # between looks at how far a watch that goes on has come

WRITEBACK_DELAY_S: Final = 0.5
WRITEBACK_SHARED_DELAY_S: Final = 0.01  # while others may look: tail -f shows a line within 50 ms
DIRTY_FILE_BYTES_MAX: Final = 1024 * 1024  # one commit's worth; a sequential writer streams
DIRTY_EXTENTS_MAX: Final = 1024  # scattered writes that wait, per file
DIRTY_BYTES_MAX: Final = 8 * 1024 * 1024
DIRTY_FILES_MAX: Final = 4096  # what is kept of a file may take more memory than its dirty bytes
WRITEBACK_RETRY_FIRST_S: Final = 0.1  # after a store that could not be reached, per file
WRITEBACK_RETRY_MAX_S: Final = 2.0
FLUSHES_MAX: Final = 16  # files that are committed at the same time, as a sync or unasked
DOUBTFUL_INODES_MAX: Final = 4096  # touched by commits whose outcome is not known
READAHEAD_BYTES_MAX: Final = 1024 * 1024

COMMIT_DATA_BYTES_MAX: Final = 1024 * 1024  # file data in one commit; its metadata comes on top
COMMIT_EXTENTS_MAX: Final = 48  # scattered writes in one commit
COPY_STEP_CHUNKS: Final = 64  # that one commit copies
COPY_CALL_STEPS_MAX: Final = 64  # of one copy_file_range, which is 256 MiB that are no holes
COPY_THROUGH_BYTES_MAX: Final = 1024 * 1024  # of a step that the store cannot do by itself

READ_ATTEMPTS_MAX: Final = 8  # of an inode that changes each time while it is being read
TXN_ATTEMPTS_MAX: Final = 32
TXN_BACKOFF_FIRST_S: Final = 0.001
TXN_BACKOFF_MAX_S: Final = 0.25

INO_RANGE_COUNT: Final = 1024  # inode numbers a session takes at once

READDIR_PAGE_ENTRIES: Final = 256
READDIR_REPLY_ENTRIES: Final = 32  # asked for at once; how many fit a reply depends on their names
BARRIER_S: Final = 2.0  # for the feed to catch up; one that does not is taken for broken
KNOWN_NAMES_MAX: Final = 64  # of one inode, by which the kernel was told of it
OUTDATED_NAME_S: Final = 2.0  # after which no request is on its way that walked over such a name
OUTDATED_NAMES_MAX: Final = 4096
KERNEL_INVALIDATIONS_MAX: Final = 4096  # waiting to be told to the kernel; beyond, it forgets all
KERNEL_BATCH_MAX: Final = 64  # of them told by a thread at a time
KERNEL_THREADS: Final = 2  # for inodes and for entries each: one may wait for the kernel's locks
KERNEL_SETTLE_S: Final = 1.0  # that an open waits for them; else the kernel drops all pages itself
KERNEL_CHANGING_S: Final = 1.0  # after a change by others; who opens then reads past the page cache
KERNEL_CHANGING_MAX: Final = 4096  # inodes of which that is remembered
KERNEL_DELAY_S: Final = 0.1  # until the kernel has a reply in hand, at which its timeouts begin
PATH_RETRIES_MAX: Final = 4096  # threads that are about to try again what was ESTALE
PATH_WALKED_S: Final = 2.0  # from a walk's last lookup to the open that it was for
PATH_RETRY_S: Final = 10.0  # after which they are not, however slow the machine
READDIR_KEPT_NAMES_MAX: Final = 4096  # per open directory, for seekdir
READDIR_CHECKPOINTS_MAX: Final = 1024  # per open directory, for seekdir further back

OPEN_HANDLES_MAX: Final = 2**20  # as fs.nr_open: a process cannot have more open files

ORPHAN_STEP_CHUNKS: Final = 1024  # chunks that one step of the collector deletes
UNLINK_AT_ONCE_CHUNKS: Final = 1024  # a larger file becomes an orphan and is collected in steps
ORPHAN_SCAN_S: Final = 15.0
ORPHAN_LINGER_S: Final = 2.0  # for mounts to hear of a removal and hold what they have open
ORPHANS_LINGERING_MAX: Final = 65536  # then the oldest goes at once; about 10 MB
ORPHANS_AT_ONCE: Final = (kv_limits.COMMIT_OPS_MAX - 2) // 3  # of files that are only an inode
ORPHAN_OPS_MAX: Final = 5  # that remove one: inode, times, orphan record, chunks, xattrs
HOLDS_AT_ONCE: Final = 64  # put by one commit
HOLD_RETRY_S: Final = 0.1  # far below the time that a removed file lingers

FSCK_PAGE_RECORDS: Final = 1024  # four scans are joined: with full pages 4 MiB of values at once
FSCK_PROBLEMS_MAX: Final = 1000  # listed; all are counted
FSCK_LIVE_PASSES_MAX: Final = 3  # a problem that three passes over a busy volume see is one

# A grant is one commit that checks all sessions' records of the inode, and the gaps between them.
LOCK_SESSIONS_MAX: Final = 61  # other mounts with locks on one file
LOCK_ENTRIES_MAX: Final = 4096  # locks and waiters of one mount on one file, written all together
LOCK_FILES_MAX: Final = 8192  # on which one mount has locks; each is a key on its lease
LOCK_YIELD_S: Final = 1.0  # for who is first in the queue to take what is free
LOCK_POLL_FIRST_S: Final = 0.01  # between looks at a lock while changes cannot be followed
LOCK_POLL_MAX_S: Final = 1.0
LOCK_RETRY_FIRST_S: Final = 0.1  # after a lock could not be given back to a store that is away
LOCK_RETRY_MAX_S: Final = 2.0

SHUTDOWN_S: Final = 60.0  # for committing what is dirty when a mount ends
SHUTDOWN_AWAY_S: Final = 5.0  # the same if the store has been out of reach already

SESSION_TTL_S: Final = 30.0
SESSION_KEEPALIVE_S: Final = 10.0
SESSION_CALL_S: Final = 5.0  # for one keepalive, and to end a session at a mount's end
SESSION_RETRY_S: Final = 1.0  # after a keepalive that failed

TIMEOUT_S_MIN: Final = 1.0  # of a call; less would take a busy server for a dead one
TIMEOUT_S_MAX: Final = 600.0

KV_TIMEOUT_S: Final = 30.0  # one call of the store, all its tries together; `--timeout`
KV_RETRY_FIRST_S: Final = 0.01  # before the second try of a call
KV_RETRY_MAX_S: Final = 1.0
KV_SLOTS_MAX: Final = 256  # commits under way at once, whatever more a server would allow

POOL_CONNECTIONS_MAX: Final = 8  # over all endpoints; Aspen's number
POOL_SMALL_CALLS: Final = 16  # on every connection for them, before one more is opened
POOL_SMALL_CALLS_MAX: Final = 64  # on one connection; more wait until another is open
POOL_BULK_CALLS: Final = 2  # on one connection; each may be 1 MiB, so more would only queue
POOL_BULK_COMMIT_BYTES: Final = 32 * 1024  # a commit with more takes a connection for bulk
POOL_CALLS_MAX: Final = 256  # under way on all connections; watches do not count
POOL_WAITING_MAX: Final = 1024  # calls that wait for a connection
POOL_IDLE_S: Final = 30.0  # until a connection is closed that load no longer needs
POOL_DIAL_S: Final = 10.0  # a handshake has four round trips, and some of them may be lost
POOL_BACKOFF_FIRST_S: Final = 0.05  # after an endpoint failed for the first time
POOL_BACKOFF_MAX_S: Final = 5.0  # a server that is back is found within this time
POOL_REFUSED_RETRY_S: Final = 30.0  # after an endpoint refused for a reason that time cures rarely
POOL_BYE_S: Final = 1.0  # to tell the server that this client is done

SYMLINKS_MAX: Final = 40  # in one path, as the kernel's own limit (MAXSYMLINKS)
STACKED_MOUNTS_MAX: Final = 16  # dead mounts on one mountpoint that one mount takes away
MOUNT_USERS_NAMED_MAX: Final = 3  # processes that "is in use" names
MOUNT_DEAD_TIMEOUT_S: Final = 1.0  # the kernel itself answers for a mount without a process
MOUNT_ANSWER_TIMEOUT_S: Final = 10.0  # a statfs of a healthy mount takes well under a millisecond
MOUNT_READY_TIMEOUT_S: Final = 300.0  # opening the store may replay a long log
FUSERMOUNT_TIMEOUT_S: Final = 30.0
LINGERING_MOUNT_S: Final = 2.0  # an unmounted file system ends within milliseconds
UNMOUNT_CLONES_S: Final = 5.0  # a starting container holds a copy of every mount for a moment
UNMOUNT_WAIT_S: Final = 300.0  # the time to write what is dirty to a slow disk
FORCED_UNMOUNT_WAIT_S: Final = 5.0  # 8 MiB at most are left to write
INTERRUPT_LOOK_S: Final = 0.1  # a request is slow after one to two of these
THREADS_LOOKED_AT: Final = 64  # of a process that waits; most have one
FUSE_TASKS_MAX: Final = 32  # requests in work at once; each may hold a buffer of 1 MiB
FUSE_FAR_TASKS_MAX: Final = 128  # of a networked mount: what waits for a server holds up no other
FUSE_IDLE_TASKS_MAX: Final = 8
GC_ALLOCATIONS: Final = 50_000  # containers made before cycles are looked for
FUSE_UNYIELDING_REQUESTS_MAX: Final = 16  # answered in a row before other tasks have a turn
LOCK_SETTLES_MAX: Final = 10  # times KERNEL_SETTLE_S, for older pages to be dropped under a lock
FUSE_LOCK_WAITERS_MAX: Final = 4096  # each is a task and a caller asleep in the kernel; then ENOLCK
KERNEL_READAHEAD_KIB: Final = 4096  # four requests of 1 MiB: some are read while one is answered
KERNEL_BACKGROUND_MAX: Final = 64  # requests ahead of readers; the kernel's 12 hold eight up
KERNEL_ENTRY_TIMEOUT_S: Final = 3600.0  # the watch drops the kernel's copies long before
KERNEL_ATTR_TIMEOUT_S: Final = 3600.0
KERNEL_TTL_S: Final = 1.0  # for both where nobody follows what others do; beside the caches' own

LOG_FILE_BYTES_MAX: Final = 4 * 1024 * 1024
LOG_FILES_KEPT: Final = 3
STARTUP_REPORT_BYTES_MAX: Final = 64 * 1024

CONTROL_FRAME_BYTES_MAX: Final = 4 * 1024 * 1024  # a scan page and its framing
CONTROL_CONNECTIONS_MAX: Final = 16
CONTROL_STREAMS_MAX: Final = 4  # connections that are sent items without end
CONTROL_BACKLOG: Final = 16
CONTROL_IDLE_S: Final = 60.0  # between two requests of one connection
CONTROL_SEND_S: Final = 30.0
CONTROL_RECEIVE_BYTES: Final = 64 * 1024
CONTROL_STORE_S: Final = 3.0  # then a status goes without what the store would tell
CONTROL_ANSWER_S: Final = 300.0  # a sync may have all that is dirty to write
INFO_CHUNKS_NAMED_MAX: Final = 64  # chunks that `aspenfs info` lists one by one

FEED_NAMES_MAX: Final = 2**18  # that one `aspenfs watch` knows, at about half a KiB each
FEED_BACKLOG_EVENTS_MAX: Final = 8192  # commits that wait while it prints, or reads names
FEED_WRITES_S: Final = 1.0  # in which further writes of one file are told as one
FEED_RETRY_S: Final = 1.0  # between tries to go on after the feed broke

assert CHUNK_BYTES <= kv_limits.VALUE_BYTES_MAX, "a chunk is one value"
assert INLINE_BYTES_MAX <= CHUNK_BYTES, "a file leaves its inode before it needs a second chunk"
assert (
    COMMIT_DATA_BYTES_MAX // CHUNK_BYTES + 2 * COMMIT_EXTENTS_MAX + 8 <= kv_limits.COMMIT_OPS_MAX
), "a full data commit and its metadata fit the operations of one commit"
assert COPY_STEP_CHUNKS * CHUNK_BYTES <= kv_limits.COMMIT_COPIED_BYTES_MAX, (
    "a step of a copy fits a commit"
)
assert COPY_STEP_CHUNKS + 8 <= kv_limits.COMMIT_OPS_MAX, "and so do its metadata"
assert COMMIT_DATA_BYTES_MAX + 256 * 1024 <= kv_limits.COMMIT_BYTES_MAX, (
    "a full data commit and its metadata fit the bytes of one commit"
)
assert TIMEOUT_S_MAX < kv_limits.SESSION_IDLE_S_MIN, (
    "a server remembers a client as long as that may send a commit again"
)
assert READDIR_PAGE_ENTRIES < READDIR_KEPT_NAMES_MAX, "going on within a page is exact"
assert max(HOLDS_AT_ONCE, 2 * ORPHANS_AT_ONCE) < kv_limits.COMMIT_CHECKS_MAX, (
    "the checks of many orphans and of the session fit one commit"
)
assert HOLDS_AT_ONCE <= kv_limits.COMMIT_OPS_MAX, "many holds fit one commit"
assert DIRTY_FILE_BYTES_MAX <= DIRTY_BYTES_MAX, "one file fits the dirty buffer"
assert SESSION_KEEPALIVE_S + 3 * (SESSION_CALL_S + SESSION_RETRY_S) < SESSION_TTL_S, (
    "two lost keepalives do not end a session"
)
assert 2 * kv_limits.SCAN_BYTES_MAX + kv_limits.VALUE_BYTES_MAX < CONTROL_FRAME_BYTES_MAX, (
    "a scan page fits a control frame, with its framing"
)
assert CONTROL_STREAMS_MAX * 3 < kv_limits.SESSION_WATCHES_MAX, (
    "feeds of changes, with three watches each, leave one to the mount that shares their client"
)
assert 2 * CONTROL_STREAMS_MAX < CONTROL_CONNECTIONS_MAX, (
    "a feed and its reads leave connections to others"
)
assert POOL_SMALL_CALLS < POOL_SMALL_CALLS_MAX, "another connection is dialed before calls wait"
assert (
    POOL_SMALL_CALLS_MAX + POOL_BULK_CALLS + kv_limits.SESSION_WATCHES_MAX <= kv_limits.STREAMS_MAX
), "a connection has a stream for each call that it may be given"
assert POOL_CONNECTIONS_MAX >= 2, "small calls have a connection that bulk cannot take"
assert 2 * POOL_DIAL_S < KV_TIMEOUT_S, "a call outlives two endpoints that do not answer"
assert 2 * LOCK_SESSIONS_MAX + 5 < kv_limits.COMMIT_CHECKS_MAX, (
    "a grant checks each record, each gap between them, and the session"
)
assert 2 * LOCK_FILES_MAX <= kv_limits.LEASE_KEYS_PER_PREFIX_MAX, (
    "one mount's locks leave room to another's"
)
