"""The examples of docs/protocol.md as bytes, for decoders to begin with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

_DOCUMENT = Path(__file__).parents[1] / "docs" / "protocol.md"


def examples(*kinds: str) -> list[bytes]:
    """Return the bytes of every example of these kinds."""
    blocks = re.findall(r"^```toml\n(.*?)^```$", _DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    tables = map(tomllib.loads, blocks)
    return [
        bytes.fromhex(re.sub(r"#.*", "", table["hex"]))
        for table in tables
        if table["kind"] in kinds
    ]
