from __future__ import annotations

import inspect

import pytest

from aspenkv import errors, limits
from aspenkv.errors import (
    AspenKvError,
    ConnectionLostError,
    LocalProtocolError,
    OutcomeUnknownError,
    ProtocolError,
    RemoteProtocolError,
    ServerKeyError,
    TicketDamagedError,
    TicketError,
)
from aspenkv.protocol import Sync, decode_reply, encode_error
from aspenkv.protocol.error_codes import code_of, error_of, message_of

ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, AspenKvError)
]
# Raised by a client that never asked a server, or by a base of what is raised.
AT_THE_CLIENT = {
    AspenKvError,
    ProtocolError,
    LocalProtocolError,
    ConnectionLostError,
    ServerKeyError,
    TicketDamagedError,
}
SENT = [kind for kind in ALL if kind not in AT_THE_CLIENT]


@pytest.mark.parametrize("kind", SENT)
def test_an_error_arrives_as_what_it_was(kind: type[AspenKvError]) -> None:
    expected = LocalProtocolError if kind is RemoteProtocolError else kind
    with pytest.raises(expected) as caught:
        decode_reply(encode_error(7, kind("what: the cure")), 7, Sync())
    assert type(caught.value) is expected
    assert str(caught.value) == "what: the cure"


def test_every_error_has_a_code_of_its_own() -> None:
    assert len({code_of(kind("")) for kind in SENT}) == len(SENT)


@pytest.mark.parametrize("kind", sorted(AT_THE_CLIENT - {TicketDamagedError}, key=str))
def test_an_error_that_no_server_should_send_promises_nothing(kind: type[AspenKvError]) -> None:
    assert type(error_of(code_of(kind("")), "")) is OutcomeUnknownError


def test_an_error_without_a_code_is_sent_as_the_nearest_above_it() -> None:
    assert type(error_of(code_of(TicketDamagedError("")), "")) is TicketError


@pytest.mark.parametrize("code", [5, 99, 2**64 - 1])
def test_an_unknown_code_promises_nothing(code: int) -> None:
    error = error_of(code, "what")
    assert type(error) is OutcomeUnknownError
    assert str(error) == "what"


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("x" * 5000, "x" * limits.ERROR_MESSAGE_BYTES_MAX),
        ("x" + "é" * 5000, "x" + "é" * ((limits.ERROR_MESSAGE_BYTES_MAX - 1) // 2)),
        ("a path \udcff", "a path \\udcff"),
    ],
)
def test_a_message_is_cut_and_made_utf8(text: str, sent: str) -> None:
    assert message_of(AspenKvError(text)) == sent
