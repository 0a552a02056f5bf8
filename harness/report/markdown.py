"""The templates of the reports: Markdown for people, and the frame of an HTML page."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from harness.text import heading, metric_label, number


def fill(template: str, **context: Any) -> str:
    """A file of ``templates/``, filled in; a name that the context lacks is an error."""
    return _environment().get_template(template).render(context)


@cache
def _environment() -> Environment:
    # Markdown for people, not HTML: nothing is escaped; names in it are validated where they enter.
    made = Environment(  # noqa: S701
        loader=PackageLoader("harness.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["num"] = number
    made.filters["metric"] = metric_label
    made.filters["heading"] = heading
    return made


def squeeze(text: str) -> str:
    """At most one blank line in a row, and one newline at the end."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
    return "\n".join(lines).rstrip() + "\n"
