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
    *(
        Goal("driver", row, "plain aioquic", row, 1.5)
        for row in (SEQUENTIAL, IN_FLIGHT, BULK_PUT, BULK_GET)
    ),
    Goal("driver", IN_FLIGHT, "driver", SEQUENTIAL, 3.0),
)
