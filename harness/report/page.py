"""A page of a report: a folder with its Markdown and figures, and the same as one HTML file."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from matplotlib.figure import Figure
from PIL import Image

from harness import atomic
from harness.findings.statistics import Estimate
from harness.report.plots import to_png
from harness.text import heading, metric_label, number


def write_page(
    out: Path,
    template: str,
    context: Mapping[str, Any],
    *,
    figures: Mapping[str, Figure],
    files: Mapping[str, bytes],
) -> Path:
    """Write a page into a folder, and return the path of ``report.md``: the same page gives the same bytes.

    The template gets ``figures`` (name to file), too. Pictures that only the earlier page shows are removed; others may
    be a person's.
    """
    drawn = {name: f"{name}.png" for name in figures}
    files = {**files, **{drawn[name]: to_png(figure) for name, figure in figures.items()}}
    for name, payload in files.items():
        atomic.write_bytes(out / name, payload)
    path = out / "report.md"
    former = set(_SHOWN.findall(path.read_text(encoding="utf-8"))) if path.is_file() else set[str]()
    atomic.write_text(path, squeezed(filled(template, **context, figures=drawn)))
    write_html(path)
    for name in former - files.keys():
        (out / name).unlink(missing_ok=True)
    return path


def filled(template: str, **context: Any) -> str:
    """A file of ``templates/``, filled in; a name that the context lacks is an error."""
    return _environment().get_template(template).render(context)


# A picture of the page's own folder.
_SHOWN = re.compile(r"!\[[^\]]*\]\(([A-Za-z0-9][\w.-]*\.(?:png|svg|gif))\)")
_PICTURES = {".png": "image/png", ".gif": "image/gif"}
# A line that begins or ends a part of a page, which is folded below its summary or placed by its name.
_PART = re.compile(r"^(<details><summary>.*</summary>|</details>|<div class=\"[a-z]+\">|</div>)$", re.MULTILINE)
_SUMMARY = re.compile(r"(<details><summary>)(.*)(</summary>)")
# What an SVG says of itself for others than a page: its kind, its namespaces.
_PROLOGUE = re.compile(r"^.*?(?=<svg)|\sxmlns(:\w+)?=\"[^\"]*\"", re.DOTALL)


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
    made.filters |= {"num": number, "interval": _interval, "percent": _percent}
    made.filters |= {"metric": metric_label, "heading": heading}
    return made


def _interval(estimate: Estimate | None) -> str:
    return "–" if estimate is None or estimate.low is None else f"{number(estimate.low)} to {number(estimate.high)}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}"


def png(picture: Image.Image) -> bytes:
    """A picture as a file; the same for the same picture."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def spread(paths: Sequence[Path], n: int) -> list[Path]:
    """At most n of them: the first, the last, and some evenly between."""
    if len(paths) <= n:
        return list(paths)
    return [paths[round(i * (len(paths) - 1) / (n - 1))] for i in range(n)]


def squeezed(text: str) -> str:
    """At most one blank line in a row, and one newline at the end."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
    return "\n".join(lines).rstrip() + "\n"


def write_html(page: Path) -> Path:
    """Write ``report.html`` next to a ``report.md``; the same files give the same bytes."""
    text = page.read_text(encoding="utf-8")
    title = next((line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")), page.parent.name)
    path = page.with_suffix(".html")
    atomic.write_text(path, page_to_html(text, page.parent, title=title))
    return path


def page_to_html(markdown: str, folder: Path, *, title: str) -> str:
    """CommonMark with tables as HTML; images are of ``folder``.

    Markup in the text is shown, never obeyed, but for the lines that begin and end a part of the page. The page runs
    one script, which sorts tables, and loads nothing.
    """
    reader = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer).enable("table")
    first, *rest = _PART.split(markdown)
    body = reader.render(first, {"folder": folder.resolve()})
    for part, text in zip(rest[::2], rest[1::2], strict=True):
        body += _SUMMARY.sub(lambda match: match[1] + escape(match[2]) + match[3], part) + "\n"
        body += reader.render(text, {"folder": folder.resolve()})
    script = filled("sort.js")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return filled("page.html.j2", title=escape(title), body=body, script=script, allowed=allowed)


class _Renderer(RendererHTML):
    """Images as data, drawings as they are, those outside the folder named instead; tables and drawings scroll."""

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        token: Any = tokens[idx]
        folder: Path = env["folder"]
        source, label = str(token.attrs["src"]), escape(token.content, quote=True)
        path = (folder / source).resolve()
        if not path.is_relative_to(folder) or path.suffix not in (*_PICTURES, ".svg") or not path.is_file():
            return f"<em>{label}: no image {escape(source)}</em>"
        if path.suffix == ".svg":
            drawing = _PROLOGUE.sub("", path.read_text(encoding="utf-8"))
            return f'<span class="drawing" role="img" aria-label="{label}">{drawing}</span>'
        data = base64.b64encode(path.read_bytes()).decode()
        return f'<img src="data:{_PICTURES[path.suffix]};base64,{data}" alt="{label}">'

    def table_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return '<div class="table"><table>\n'

    def table_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return "</table></div>\n"
