"""What one subject must reach beside another, or one row beside another."""

from __future__ import annotations

from typing import Final, NamedTuple

from bench.net.rows import BULK_GET, BULK_PUT, IN_FLIGHT, SEQUENTIAL, Row


class Goal(NamedTuple):
    """At least ``ratio`` times the rate of what it is compared with."""

    subject: str
    row: Row
    than_subject: str
    than_row: Row
    ratio: float


GOALS: Final = (
    *(Goal("driver", row, "plain aioquic", row, 1.5) for row in (SEQUENTIAL, BULK_PUT, BULK_GET)),
    Goal("driver", IN_FLIGHT, "driver", SEQUENTIAL, 3.0),
    Goal("pool and service", SEQUENTIAL, "driver", SEQUENTIAL, 1 / 1.3),
    Goal("pool and service", IN_FLIGHT, "pool and service", SEQUENTIAL, 3.0),
    Goal("pool and service", BULK_PUT, "driver", BULK_PUT, 0.7),
    Goal("pool and service", BULK_GET, "driver", BULK_GET, 0.7),
)
