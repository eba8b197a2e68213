"""Commands whose ``--help`` ends with lines that are printed as they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

Sections = Mapping[str, Sequence[str]]
"""Lines by the title that stands over them."""


class _WithSections(click.Command):
    def __init__(self, *args: Any, sections: Sections, **kwargs: Any) -> None:  # noqa: ANN401 - click's
        super().__init__(*args, **kwargs)
        self._sections = sections

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        for title, lines in self._sections.items():
            with formatter.section(title):
                for line in lines:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Command(_WithSections):
    """A command with sections of lines."""


class Group(_WithSections, click.Group):
    """A group of commands with sections of lines."""
