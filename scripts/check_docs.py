"""Check the documents: relative links and anchors lead somewhere, and no document is unreachable.

Run from the root of the repository; prints one line per fault and exits 1 if there is any.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

_START = Path("README.md")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+\s+(?P<title>.+?)\s*$", re.MULTILINE)


def prose(document: Path) -> str:
    """Return a document's text without its fenced code."""
    return _FENCE.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """Return the anchors that a document's headings make, as code hosts derive them."""
    titles = (match["title"].lower() for match in _HEADING.finditer(prose(document)))
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def links(document: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield each link to a file of the repository: as written, the file it names, its anchor."""
    for match in _LINK.finditer(prose(document)):
        target = match["target"]
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield target, (document.parent / path if path else document), anchor


def faults() -> Iterator[str]:
    """Follow the links from the README on, and yield what is wrong."""
    reached: set[Path] = set()
    waiting = [_START]
    while waiting:
        document = waiting.pop()
        reached.add(document.resolve())
        for target, path, anchor in links(document):
            if not path.exists():
                yield f"{document}: no file at {target}"
            elif path.suffix == ".md":
                if anchor and anchor not in anchors(path):
                    yield f"{document}: no heading for {target}"
                if path.resolve() not in reached and path not in waiting:
                    waiting.append(path)
    for document in sorted(Path("docs").rglob("*.md")):
        if document.resolve() not in reached:
            yield f"{document}: no link leads to it from {_START}"


def main() -> int:
    """Print the faults; return the exit code."""
    found = list(faults())
    sys.stderr.writelines(f"{fault}\n" for fault in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
