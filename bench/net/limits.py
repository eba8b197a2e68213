"""Every bound of the network benchmark, in one place."""

from typing import Final

CONNECT_TIMEOUT_S: Final = 10.0
SERVER_START_TIMEOUT_S: Final = 20.0
SERVER_END_TIMEOUT_S: Final = 10.0

SMALL_BYTES: Final = 100  # of a small request, and of its reply
BULK_BYTES: Final = 256 * 1024
CALLS_IN_FLIGHT: Final = 32
BULK_IN_FLIGHT: Final = 4
MESSAGE_BYTES_MAX: Final = 1024 * 1024

PLAIN_DATAGRAM_BYTES: Final = 16_300  # what a plain echo sends over loopback
