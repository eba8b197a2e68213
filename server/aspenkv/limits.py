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
COMMIT_COPIED_BYTES_MAX: Final = 4 * 1024 * 1024  # of values; other commits wait some 10 ms for it

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

# Long enough to save almost every question of a client that is alone, and short enough for
# another's first commit to wait it out.
DELEGATION_S: Final = 1.0
DELEGATION_SLACK_S: Final = 0.005  # kept longer, as clocks drift apart; NTP slews by 0.05 %
DELEGATION_QUIET_S: Final = 10.0  # since another client's last commit, before one is held up

LEASES_MAX: Final = 4096
LEASES_PER_PREFIX_MAX: Final = 1024  # so that one volume leaves some to the others
LEASE_KEYS_MAX: Final = 65536  # on all leases of a server together
LEASE_KEYS_PER_PREFIX_MAX: Final = 16384
LEASE_ID_MAX: Final = 2**63 - 1  # random, so that a number never comes back; fits a signed i64
LEASE_LATENESS_S_MAX: Final = 1.0  # of a lapse; noticed later, the process was stopped meanwhile
LEASE_REMOVAL_RETRY_S: Final = 1.0  # after the engine failed to remove lapsed leases
LEASE_TTL_S_MIN: Final = 1.0
LEASE_TTL_S_MAX: Final = 3600.0

SLOTS_MAX: Final = 64  # commits that one client may have under way; more wait at the client
SEQUENCE_MAX: Final = 2**64 - 1
SESSIONS_MAX: Final = 1024  # clients that the server knows, connected or not
SESSIONS_PER_TICKET_MAX: Final = 512  # so that the holder of one leaves room to others
SESSION_TTL_S: Final = 3600.0  # without a connection; far above any client's --timeout
SESSION_IDLE_S_MIN: Final = 900.0  # a client that lost its server is back by then, or gave up
SESSION_REMOVAL_RETRY_S: Final = 1.0  # after the engine failed to remove sessions
SESSION_REQUESTS_MAX: Final = 256  # of one client at once
SESSION_BYTES_MAX: Final = 64 * 1024 * 1024  # of their frames and replies
SESSION_WATCHES_MAX: Final = 16
SESSION_CONNECTIONS_MAX: Final = 16  # a pool of 8, and again while lost ones are not missed yet
SERVER_REQUESTS_MAX: Final = 8192  # of all clients at once
SERVER_BYTES_MAX: Final = 512 * 1024 * 1024
CLIENT_NAME_BYTES_MAX: Final = 128  # what a client calls itself; UTF-8

TICKETS_MAX: Final = 4096  # those that were revoked count until their place is needed
TICKET_LABEL_BYTES_MAX: Final = 128  # UTF-8
TICKET_PREFIX_BYTES_MAX: Final = 128  # the longest volume name makes 68
TICKET_LIFETIME_S_MAX: Final = 100 * 366 * 86400.0
TICKET_CHECK_S: Final = 60.0  # expiry follows the wall clock, which may be set meanwhile
TICKET_ENDPOINTS_MAX: Final = 8
TICKET_TEXT_BYTES_MAX: Final = 4096
HOST_BYTES_MAX: Final = 255  # RFC 1035 §2.3.4

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

# A frame of the protocol is one flat row of fields. Its bounds leave room for what the contract
# allows, together with the numbers, lengths and types around it.
PART_BYTES_MAX: Final = 32  # around the bytes of a key, a check, an operation or a record
FRAME_FIELDS_MAX: Final = 32 * 1024  # a list of all tickets has most
REQUEST_BYTES_MAX: Final = COMMIT_BYTES_MAX + 16 * 1024
BULK_GET_KEYS_MAX: Final = 16  # whatever their size, as many values fit one reply
GET_BYTES_MAX: Final = BULK_GET_KEYS_MAX * VALUE_BYTES_MAX  # of values in one reply
REPLY_BYTES_MAX: Final = GET_BYTES_MAX + 64 * 1024
HELLO_BYTES_MAX: Final = 1024  # of the first request of a connection, which nobody vouches for
WATCH_FRAME_BYTES_MAX: Final = 2 * 1024 * 1024  # one commit, all its keys and values
TEXT_BYTES_MAX: Final = 256  # of a name or label that is shown to people, in UTF-8
ERROR_MESSAGE_BYTES_MAX: Final = 1024

assert KEY_BYTES_MAX + VALUE_BYTES_MAX < COMMIT_BYTES_MAX, "the largest record must fit a commit"
assert VALUE_BYTES_MAX <= COMMIT_COPIED_BYTES_MAX, "every value can be copied"
assert KEY_BYTES_MAX + VALUE_BYTES_MAX < 2 * SCAN_BYTES_MAX, "a scan page holds one record at least"

# --- the QUIC driver -----------------------------------------------------------------------------

DATAGRAM_BYTES_MIN: Final = 1200  # what every QUIC path carries (RFC 9000 §14)
# A packet's length field has 14 bits (aioquic), and four datagrams fit the 65,507 bytes that one
# UDP_SEGMENT call may hand over.
DATAGRAM_BYTES_MAX: Final = 16_376
# What is encrypted before it is sent, or decrypted before it is acknowledged: while this end works
# on one part, the other end works on the one before.
SEND_BURST_BYTES_MAX: Final = 4 * DATAGRAM_BYTES_MAX
SEND_BURST_DATAGRAMS_MAX: Final = 16
RECEIVE_BATCH_BYTES_MAX: Final = 128 * 1024

IDLE_TIMEOUT_S: Final = 10.0  # of silence, after which the other end is taken for gone
KEEPALIVE_S: Final = 3.0  # of silence, after which a client asks for a sign of life
HANDSHAKE_TIMEOUT_S: Final = 10.0
ACK_DELAY_S: Final = 0.01  # an acknowledgement waits for a packet to ride on; 25 ms are allowed

STREAMS_MAX: Final = 128  # that a client has open on one connection
STREAMS_UNADMITTED_MAX: Final = 4  # before the server knows who asks
STREAM_WINDOW_BYTES: Final = 64 * 1024  # of a request that arrive before the server grants more
# Requests longer than that share these bytes, first come, first served; each counts as long as it
# may become, from its first bytes until it is answered.
CONNECTION_REQUEST_BYTES_MAX: Final = 16 * 1024 * 1024
# Parts of a stream that arrived with holes between them. Of what a window lets a peer send, every
# second packet may be lost; a handshake has a few packets.
STREAM_RANGES_MAX: Final = 1024
CRYPTO_RANGES_MAX: Final = 64
REPLY_WINDOW_BYTES: Final = 1024 * 1024  # of a reply or a watch that arrive before they are read
SEND_UNSENT_BYTES_MAX: Final = 1024 * 1024  # on one connection, before a sender waits
SEND_CHUNK_BYTES: Final = 256 * 1024  # handed over at a time

CONGESTION_WINDOW_BYTES_MIN: Final = 512 * 1024  # below which no cap applies
CONGESTION_WINDOW_BYTES_MAX: Final = 8 * 1024 * 1024
SEND_BYTES_PER_S_MAX: Final = 256 * 1024 * 1024  # more than one process encrypts; caps the window
SHORTEST_ROUND_TRIP_AGE_S_MAX: Final = 10.0  # then it is measured anew: the path may have changed
PACING_BURST_S: Final = 0.002  # sent at once, since the event loop's timer counts milliseconds
BLACK_HOLE_LOSSES: Final = 3  # of large datagrams in a row, before small ones are tried
LARGE_DATAGRAM_RETRY_S: Final = 5.0  # after that, and 8 times as long each further time
LARGE_DATAGRAM_RETRY_S_MAX: Final = 600.0  # PMTU_RAISE_TIMER of RFC 8899 §5.1.1
KEY_UPDATE_PACKETS: Final = 1 << 20  # under one key; AES-GCM allows 2^23 (RFC 9001 §6.6)

HELLO_TIMEOUT_S: Final = 10.0  # to connect, and to be welcomed; a server that lives needs 0.1 s
UNCOUNTED_REPLY_BYTES: Final = 4096  # such a reply always goes out, as of a commit that is done
DRAIN_S: Final = 10.0  # that a server which ends leaves to requests under way
HANG_UP_S: Final = 1.0  # after a session has ended, in which its calls are told why
FAILURES_LOGGED_PER_S: Final = 8.0  # of requests and hellos; clients may cause any number
SERVER_ID_BYTES: Final = 16  # drawn by each server process
WATCH_PROGRESS_S: Final = 1.0  # without an event, until a watch is told how far the server is
CONNECTIONS_MAX: Final = 1024  # of one server
HANDSHAKES_PENDING_MAX: Final = 64
HANDSHAKES_PER_S: Final = 64.0  # each costs some milliseconds of the processor
STATELESS_RESETS_PER_S: Final = 64.0
PEER_MTUS_MAX: Final = 1024  # addresses whose MTU is remembered
PEER_MTU_AGE_S_MAX: Final = 60.0
SOCKET_BUFFER_BYTES: Final = 4 * 1024 * 1024  # asked for; the kernel may give less
assert REQUEST_BYTES_MAX < 2 * STREAM_RANGES_MAX * (DATAGRAM_BYTES_MIN - 100), (
    "a request of which every second packet is lost still arrives"
)
assert GET_KEYS_MAX * PART_BYTES_MAX <= REPLY_BYTES_MAX - GET_BYTES_MAX, "values fit their reply"
assert 2 * REPLY_BYTES_MAX < SESSION_BYTES_MAX, "one client reads while it waits for a reply"
assert SESSIONS_PER_TICKET_MAX < SESSIONS_MAX, "no ticket alone keeps others out"
assert SESSION_IDLE_S_MIN < SESSION_TTL_S, "a session that is about to come back stays"
assert TICKET_ENDPOINTS_MAX * (HOST_BYTES_MAX + 3) + 128 < TICKET_TEXT_BYTES_MAX * 3 // 4, (
    "the longest ticket can be read"
)
assert (
    COMMIT_BYTES_MAX + (1 + COMMIT_CHECKS_MAX + COMMIT_OPS_MAX) * PART_BYTES_MAX
    <= REQUEST_BYTES_MAX
), "a full commit fits a request"
assert (1 + GET_KEYS_MAX) * (KEY_BYTES_MAX + PART_BYTES_MAX) <= REQUEST_BYTES_MAX, (
    "a full get fits a request"
)
assert (
    2 * SCAN_BYTES_MAX + (1 + SCAN_ENTRIES_MAX) * PART_BYTES_MAX + 2 * RANGE_BOUND_BYTES_MAX
    <= REPLY_BYTES_MAX
), "a full page, of which the last record alone is large, fits a reply"
assert TICKETS_MAX * (KEY_BYTES_MAX + TEXT_BYTES_MAX + 2 * PART_BYTES_MAX) <= REPLY_BYTES_MAX, (
    "a list of all tickets fits a reply"
)
assert 7 * TICKETS_MAX < FRAME_FIELDS_MAX, "a list of all tickets has as many fields"
assert 4 * SESSIONS_MAX < FRAME_FIELDS_MAX // 2, "a status names all sessions"
assert (
    COMMIT_BYTES_MAX + COMMIT_OPS_MAX * (2 * RANGE_BOUND_BYTES_MAX + PART_BYTES_MAX)
    <= WATCH_FRAME_BYTES_MAX
), "a full commit, its ranges cut to a long prefix, fits a watch's message"
