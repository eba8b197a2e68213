"""The worked examples and tables of docs/protocol.md, against the code."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from aspenkv import contract, errors, limits
from aspenkv.errors import AspenKvError
from aspenkv.protocol import (
    RequestFrame,
    WatchDecoder,
    WatchOpened,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    encode_request,
    encode_watch_message,
    messages,
)
from aspenkv.protocol.error_codes import error_of
from aspenkv.protocol.layouts import KINDS
from aspenkv.quic import errors as quic_errors

DOCUMENT = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()
TEXTS = {"client", "label", "engine", "address", "members", "message", "type", "to", "kind"}
OPTIONAL = {"continuation", "from_revision", "expires_s", "failed_check", "end", "value"}


def unhex(text: str) -> bytes:
    return bytes.fromhex(re.sub(r"#.*", "", text))


def read_field(name: str, field: Any) -> Any:
    """Return what a field of an example means: bytes, unless its name says that it is a text."""
    if isinstance(field, list):
        return [read_field(name, each) for each in field]
    if isinstance(field, dict):
        return fields_of(field)
    if isinstance(field, str) and name not in TEXTS:
        return field.encode()
    return field


def fields_of(table: Mapping[str, Any]) -> dict[str, Any]:
    fields = {}
    for name, field in table.items():
        if name.endswith("_hex"):
            fields[name.removesuffix("_hex")] = unhex(field)
        elif name == "hex":
            fields[name] = unhex(field)
        else:
            fields[name] = read_field(name, field)
    return fields


def examples(kind: str) -> list[dict[str, Any]]:
    blocks = re.findall(r"^```toml\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    return [fields_of(table) for block in blocks if (table := tomllib.loads(block))["kind"] == kind]


def make(kind: Any, fields: Mapping[str, Any]) -> Any:
    """Make a named tuple; the fields that an example leaves out are None."""
    absent = {name: None for name in kind._fields if name in OPTIONAL and name not in fields}
    return kind(**{**absent, **fields})


def parts_of(example: Mapping[str, Any], name: str) -> list[Any]:
    return [
        getattr(contract, part["type"])(**{key: part[key] for key in part if key != "type"})
        for part in example.get(name, [])
    ]


def request_of(example: Mapping[str, Any]) -> Any:
    if example["type"] == "Commit":
        slot = contract.SlotUse(**example["slot"]) if "slot" in example else None
        return messages.Commit(parts_of(example, "checks"), parts_of(example, "ops"), slot)
    fields = dict(example.get("fields", {}))
    if example["type"] == "Get":
        fields["keys"] = tuple(fields["keys"])
    return make(getattr(messages, example["type"]), fields)


def example_of_request(kind: str) -> Any:
    return next(request_of(each) for each in REQUESTS if each["type"] == kind)


def status_of(fields: Mapping[str, Any]) -> contract.Status:
    sessions = tuple(contract.SessionStatus(**each) for each in fields["sessions"])
    return contract.Status(**{**fields, "members": tuple(fields["members"]), "sessions": sessions})


def page_of(example: Mapping[str, Any]) -> contract.ScanPage:
    records = [contract.Record(**each) for each in example["records"]]
    return contract.ScanPage(records, example["continuation"])


# By request: what an example of its reply means. All others are answered by a number or nothing.
REPLY_OF: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "Hello": lambda example: messages.HelloReply(**example["fields"]),
    "Get": lambda example: [
        contract.Versioned(**each) if each else None for each in example["values"]
    ],
    "Scan": page_of,
    "Commit": lambda example: make(contract.CommitResult, example["fields"]),
    "ReadStatus": lambda example: status_of(example["fields"]),
    "ReadNewest": lambda example: contract.Newest(**example["fields"]),
    "CreateTicket": lambda example: contract.CreatedTicket(**example["fields"]),
    "ListTickets": lambda example: [make(contract.TicketInfo, each) for each in example["tickets"]],
}


def number_of(example: Mapping[str, Any]) -> Any:
    return example.get("number")


def watch_message_of(example: Mapping[str, Any]) -> Any:
    match example["type"]:
        case "WatchEvent":
            changes = tuple(make(contract.Change, each) for each in example["changes"])
            return contract.WatchEvent(example["revision"], changes)
        case "WatchOpened" | "WatchProgress":
            return getattr(messages, example["type"])(example["revision"])
    return getattr(errors, example["type"])(example["message"])


REQUESTS = examples("request")
REPLIES = examples("reply")
ERRORS = examples("error")
WATCHES = examples("watch")


def named(example: Mapping[str, Any]) -> str:
    return str(example.get("type") or example.get("to"))


@pytest.mark.parametrize("example", REQUESTS, ids=named)
def test_a_request_is_encoded_and_decoded_as_documented(example: Mapping[str, Any]) -> None:
    request = request_of(example)
    head = (example["request_id"], example["deadline_ms"])
    assert encode_request(*head, request) == example["hex"]
    decoded = decode_request(example["hex"])
    assert decoded == RequestFrame(*head, request)
    assert type(decoded.request) is type(request)


@pytest.mark.parametrize("example", REPLIES, ids=named)
def test_a_reply_is_encoded_and_decoded_as_documented(example: Mapping[str, Any]) -> None:
    request = example_of_request(example["to"])
    reply = REPLY_OF.get(example["to"], number_of)(example)
    assert encode_reply(example["request_id"], request, reply) == example["hex"]
    assert decode_reply(example["hex"], example["request_id"], request) == reply


@pytest.mark.parametrize("example", ERRORS, ids=named)
def test_an_error_is_encoded_and_decoded_as_documented(example: Mapping[str, Any]) -> None:
    kind: type[AspenKvError] = getattr(errors, example["type"])
    assert encode_error(example["request_id"], kind(example["message"])) == example["hex"]
    with pytest.raises(kind) as caught:
        decode_reply(example["hex"], example["request_id"], messages.Sync())
    assert str(caught.value) == example["message"]


def test_the_messages_of_a_watch_are_encoded_and_decoded_as_documented() -> None:
    expected = [watch_message_of(each) for each in WATCHES]
    wire = [each["hex"] for each in WATCHES]
    assert [encode_watch_message(each) for each in expected] == wire
    *told, failure = expected
    decoder = WatchDecoder()
    received = decoder.receive_data(b"".join(wire))
    assert received == told
    assert list(map(type, received)) == list(map(type, told))
    assert type(received[0]) is WatchOpened
    with pytest.raises(type(failure), match=str(failure)):
        decoder.receive_data(b"")


def test_every_request_and_its_reply_has_an_example() -> None:
    assert {each["type"] for each in REQUESTS} == {kind.__name__ for kind in KINDS}
    nothing = {"Keepalive", "Revoke", "Sync", "Bye", "RevokeTicket"}
    number = {"GrantLease", "ReadRevision"}
    shown = {each["to"] for each in REPLIES}
    assert shown >= {kind.__name__ for kind in KINDS} - nothing - number - {"OpenWatch"}
    assert shown & nothing
    assert shown & number
    assert len(WATCHES) == 4


def section(heading: str) -> str:
    return re.split(r"^##? ", DOCUMENT.partition(f"\n## {heading}\n")[2], flags=re.MULTILINE)[0]


def test_the_table_of_requests_has_their_kinds() -> None:
    rows = re.findall(
        r"^\| (\d+) \| (\w+) \|", section("Requests").partition("### ")[0], re.MULTILINE
    )
    assert {name: int(kind) for kind, name in rows} == {
        request.__name__: kind for request, kind in KINDS.items()
    }


def test_the_table_of_errors_has_their_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", section("Errors"), re.MULTILINE)
    assert rows
    assert {int(code): name for code, name in rows} == {
        code: type(error_of(code, "")).__name__
        for code in range(1, 256)
        if code == 1 or type(error_of(code, "")) is not errors.OutcomeUnknownError
    }


def test_the_table_of_limits_has_their_values() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) ", section("Limits"), re.MULTILINE)
    assert rows
    assert {name: int(number.replace(",", "")) for name, number in rows} == {
        name: getattr(limits, name) for name, _ in rows
    }


def test_the_table_of_the_transport_has_the_codes_of_its_driver() -> None:
    table = section("Connections").partition("| code |")[2]
    codes = re.findall(r"^\| (\d+) \|", table, re.MULTILINE)
    driver = {name: code for name, code in vars(quic_errors).items() if name.isupper()}
    assert list(map(int, codes)) == sorted(driver.values())
