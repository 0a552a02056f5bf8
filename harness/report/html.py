"""A report as one HTML file that needs nothing else: figures inside, light and dark, no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from harness import atomic
from harness.report.markdown import fill


def write_html(page: Path) -> Path:
    """Write ``report.html`` next to a ``report.md``; the same files give the same bytes."""
    text = page.read_text(encoding="utf-8")
    title = next((line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")), page.parent.name)
    path = page.with_suffix(".html")
    atomic.write_text(path, page_to_html(text, page.parent, title=title))
    return path


def page_to_html(markdown: str, folder: Path, *, title: str) -> str:
    """The page as HTML. Markup in the text is shown, never obeyed.

    Args:
        markdown: CommonMark with tables.
        folder: where its images are; one that is not in there is named instead of shown.
        title: of the window.
    """
    reader = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer).enable("table")
    body = reader.render(markdown, {"folder": folder.resolve()})
    return fill("page.html.j2", title=escape(title), body=body)


class _Renderer(RendererHTML):
    """Images as data, tables in a frame that scrolls by itself."""

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        token: Any = tokens[idx]
        folder: Path = env["folder"]
        source, label = str(token.attrs["src"]), escape(token.content, quote=True)
        path = (folder / source).resolve()
        if not path.is_relative_to(folder) or path.suffix != ".png" or not path.is_file():
            return f"<em>{label}: no image {escape(source)}</em>"
        data = base64.b64encode(path.read_bytes()).decode()
        return f'<img src="data:image/png;base64,{data}" alt="{label}">'

    def table_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return '<div class="table"><table>\n'

    def table_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return "</table></div>\n"
