"""A page of a report: Markdown with its figures in a folder of its own, and the same as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from harness import atomic
from harness.report.html import write_html
from harness.report.markdown import fill, squeeze
from harness.report.plots import to_png


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a page says, and the files that it comes with.

    Attributes:
        template: a file of ``templates/``.
        context: what the template is filled with; ``figures`` (name to file) is added.
        figures: written as ``NAME.png``.
        files: whatever else is written, by file name.
        owned: patterns of files that only this kind of page writes; those of an earlier page are removed.
    """

    template: str
    context: Mapping[str, Any]
    figures: Mapping[str, Figure]
    files: Mapping[str, bytes] = field(default_factory=dict)
    owned: tuple[str, ...]

    def write(self, out: Path) -> Path:
        """Write the page into a folder: the same page gives the same bytes.

        Returns:
            The path of ``report.md``; ``report.html`` is next to it.
        """
        figures = {name: f"{name}.png" for name in self.figures}
        files = {**self.files, **{figures[name]: to_png(figure) for name, figure in self.figures.items()}}
        for name, payload in files.items():
            atomic.write_bytes(out / name, payload)
        path = out / "report.md"
        atomic.write_text(path, squeeze(fill(self.template, **self.context, figures=figures)))
        write_html(path)
        for old in (old for pattern in self.owned for old in out.glob(pattern)):
            if old.name not in files:
                old.unlink()
        return path
