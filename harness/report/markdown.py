"""Markdown for people: the template environment."""

from __future__ import annotations

from jinja2 import Environment, StrictUndefined

from harness.text import heading, metric_label, number


def environment() -> Environment:
    # Markdown for people, not HTML: nothing is escaped; names in it are validated where they enter.
    made = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701
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
