"""``make docs``: build the documentation into site/, and check it: every link leads somewhere, and nothing is fetched.

The pages are those of docs/, three of the clone's root, and three that are made here from the code: commands, keys
of study files, Python API. Links between them are rewritten; one to a file that is not in the site becomes plain text.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click

ROOT = Path(__file__).resolve().parents[1]
PAGES, SITE = ROOT / "build" / "docs", ROOT / "site"
# Files outside docs/ that are pages of the site, and where.
OTHERS = {"SECURITY.md": "security.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
# What the types of a study file are in TOML.
_TABLES = {
    "DataSpec": "`[data]`",
    "FixedParams": "`[fixed]`",
    "FloatParam": "`[space.NAME]` of float",
    "IntParam": "`[space.NAME]` of int",
    "CategoricalParam": "`[space.NAME]` of choices",
    "BudgetSpec": "`[budget]`",
    "ScoringSpec": "`[scoring]`",
    "ScoreSpec": "`[scoring.final]`, `[scoring.rung]`",
    "SamplerSpec": "`[sampler]`",
    "PrunerSpec": "`[pruner]`",
    "Preset": "`[[presets]]` with settings",
    "RecipePreset": "`[[presets]]` with a recipe",
    "QuickSpec": "`[quick]`",
}
# Attributes whose address a browser loads by itself; of links it loads those to styles and icons.
_LOADED = ("src", "srcset", "data", "poster")


def build() -> list[str]:
    """Build the site; return what is wrong with it, a sentence each."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    stage(PAGES)
    zensical = Path(sys.executable).with_name("zensical")
    done = subprocess.run([zensical, "build", "--clean"], cwd=ROOT, capture_output=True, text=True, check=False)
    warnings = [line for line in (done.stdout + done.stderr).splitlines() if "Warning" in line or "Error" in line]
    if done.returncode:
        return [*warnings, f"zensical failed: {done.stderr.strip()[-500:]}"]
    return [*warnings, *problems(SITE)]


def stage(out: Path) -> None:
    """Copy the pages into a folder, links rewritten, and write the generated ones."""
    shutil.copytree(ROOT / "docs", out, ignore=shutil.ignore_patterns("*.md"))
    sources = {path: path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    sources |= {ROOT / name: Path(place) for name, place in OTHERS.items()}
    committed = re.findall(r"^!/reports/(.+)/$", (ROOT / ".gitignore").read_text(), re.MULTILINE)
    pages = [page for name in committed for page in sorted((ROOT / "reports" / name).rglob("report.md"))]
    reports = {page: page.relative_to(ROOT).with_suffix(".html") for page in pages}
    for source, place in sources.items():
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        (out / place).write_text(_relinked(source, place, sources | reports))
    for source, place in reports.items():
        _write_report(source, out / place)
    for name, text in (("commands", commands_page()), ("keys", keys_page()), ("api", api_page())):
        (out / "reference" / f"{name}.md").write_text(text)


def _relinked(source: Path, place: Path, places: dict[Path, Path]) -> str:
    def link(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.groups()
        path = (source.parent / target).resolve()
        if urlsplit(target).scheme or (path.is_relative_to(ROOT / "docs") and path not in places):
            return match[0]
        if path not in places:
            return text
        return f"{picture}[{text}]({os.path.relpath(places[path], place.parent)}{anchor or ''})"

    return _LINK.sub(link, source.read_text())


def _write_report(page: Path, out: Path) -> None:
    """A committed report as its one-file page."""
    from harness.report.page import page_to_html

    out.parent.mkdir(parents=True, exist_ok=True)
    text = page.read_text()
    out.write_text(page_to_html(text, page.parent, title=text.partition("\n")[0].removeprefix("# ")))


def commands_page() -> str:
    """Every verb of ``harness``, as its help has it."""
    from harness.cli.verbs import SECTIONS, front

    lines = ["# Commands", "", "An option with a variable in brackets is also set by that variable. In a clone"]
    lines += ["`make VERB` is `harness VERB` in the environment that make installed."]
    with click.Context(front, info_name="harness") as top:
        for section, names in SECTIONS.items():
            lines += ["", f"## {section.capitalize()}"]
            for name in names:
                with click.Context(front.commands[name], info_name=name, parent=top) as context:
                    lines += ["", f"### {name}", "", "```text", front.commands[name].get_help(context).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def keys_page() -> str:
    """Every key of a study file and every hyperparameter, from the types that validate them."""
    from harness.gan.hparams import HParams
    from harness.spec.files import schema_json

    schema = json.loads(schema_json())
    tables = schema["$defs"]
    lines = ["# Keys of study files", "", "Made from the types that check the files; `harness schema` prints the same"]
    lines += ["as JSON Schema. [Study files](../studies.md) explains how they are used. Where a table"]
    lines += ['or list takes "values", each is true, false, a number or text.', "", "## Top level", ""]
    lines += _rows(schema, {})
    plain = {field.name: field.default for field in dataclasses.fields(HParams)}
    for name, table in tables.items():
        if table.get("properties"):
            about = table.get("description", "").partition("\n")[0]
            lines += ["", f"## {_TABLES.get(name, name)} {{ #{name.lower()} }}", "", about, ""]
            lines += _rows(table, plain if name == "FixedParams" else {})
    return "\n".join(lines) + "\n"


def _rows(table: dict[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    """A Markdown table of a table's keys; ``defaults`` are those that the schema does not have."""
    yield from ("| key | values | default | meaning |", "|---|---|---|---|")
    for name, key in table.get("properties", {}).items():
        value = defaults.get(name, key.get("default"))
        default = f"`{value}`" if value not in (None, "") else "required" if name in table.get("required", ()) else ""
        about = key.get("description", "").replace("|", "\\|").partition("\n")[0]
        yield f"| `{name}` | {_values(key)} | {default} | {about} |"


# The words of a key that takes any plain value.
_ANY_VALUE = {"true or false", "whole number", "number", "text"}


def _values(key: dict[str, Any]) -> str:
    """What a key may be, in words."""
    if "$ref" in key:
        name = key["$ref"].rpartition("/")[2]
        return f"[{_TABLES.get(name, name)}](#{name.lower()})"
    if "enum" in key:
        return ", ".join(f"`{value}`" for value in key["enum"])
    if "const" in key:
        return f"`{key['const']}`"
    options = [each for each in key.get("anyOf", key.get("oneOf", ())) if each.get("type") != "null"]
    if options:
        words = dict.fromkeys(_values(each) for each in options)
        if words.keys() >= _ANY_VALUE:
            words = dict.fromkeys(["values", *(each for each in words if each not in _ANY_VALUE)])
        return ", or ".join(words)
    if key.get("type") == "array":
        return f"list of {_values(key.get('items', {}))}"
    if key.get("type") == "object":
        inner = key.get("additionalProperties")
        return f"table of {_values(inner)}" if isinstance(inner, dict) else "table"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = " and ".join(f"{sign} {key[name]:,.10g}" for name, sign in signs.items() if name in key)
    words = {"integer": "whole number", "boolean": "true or false", "string": "text"}
    return f"{words.get(key.get('type', ''), key.get('type', 'any'))} {limits}".strip()


def api_page() -> str:
    """The public names; mkdocstrings fills in signatures and docstrings."""
    import harness

    lines = ["# Python API", "", "Everything that `import harness` offers. [From Python](../python.md) shows it in"]
    lines += ["use; a test runs every example. In the examples `tiny` is a study of four short trials.", ""]
    fields = {"HParams", "StudySpec"}  # whose fields are the keys of study files
    for name in (*harness.__all__, "api.study.BestTrial"):
        lines += [f"::: harness.{name}"]
        lines += ["    options:", "      members: false", ""] if name in fields else [""]
    return "\n".join(lines)


class _Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        self.loaded += [given[name] for name in _LOADED if name in given]
        if "href" in given:
            (self.loaded if tag == "link" and given.get("rel") != "canonical" else self.links).append(given["href"])


def problems(site: Path) -> list[str]:
    """Links of a built site that lead nowhere, and what its pages would load from elsewhere."""
    pages = {path: _Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    wrong = []
    for path, page in pages.items():
        name = path.relative_to(site)
        wrong += [f"{name} loads {each}" for each in page.loaded if urlsplit(each).netloc]
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link in ("", "."):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                wrong.append(f"{name} links to {link}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                wrong.append(f"{name} links to {link}, a heading that is not there")
    return wrong


if __name__ == "__main__":
    found = build()
    for sentence in found:
        sys.stderr.write(f"{sentence}\n")
    sys.exit(bool(found))
