"""The documents: links lead somewhere, and commands are ones that the harness takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import harness
from harness.cli import front
from tools.api_docs import PAGE, SHOWN, api_markdown

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "reports").glob("*/report.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_are_there(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [t for t in targets if not re.match(r"[a-z]+:", t) and not (page.parent / t).exists()]
    assert not missing


def commands() -> list[str]:
    """The lines of code blocks that call the harness."""
    blocks = [block for page in PAGES for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.M | re.S)]
    return sorted({line for block in blocks for line in block.splitlines() if re.match(r"(harness|make) ", line)})


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command, monkeypatch):
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        variables = re.search(r"^VARIABLES := (.*)$", makefile, re.M)
        assert variables
        for word in [word for word in words if "=" in word]:
            name, value = word.split("=", 1)
            assert name in variables[1].split()
            monkeypatch.setenv(name, value)
        words = [word for word in words if "=" not in word]
        assert words
        recipe = re.search(rf"^{words[0]}: ; (.*)$", makefile, re.M)
        assert recipe
        if "bootstrap.py" not in recipe[1]:  # a developer's, which calls its tool
            return
    with front.make_context("harness", list(words)) as context:
        name, verb, rest = front.resolve_command(context, list(words))
        assert verb is not None
        verb.make_context(name, rest, parent=context)


def test_the_page_of_the_python_api_is_what_the_tool_writes():
    assert {thing.__name__ for thing in SHOWN} >= {*harness.__all__}
    assert PAGE.read_text() == api_markdown(), "`python -m tools.api_docs` writes it"


def _verdicts(study: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(claim, arm) -> (verdict, effect with its interval), as the committed report on a study's claims has them."""
    found = {}
    for line in (ROOT / "reports" / f"claims-{study}" / "report.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[2].startswith("**"):
            found[cells[0], cells[1].split()[0]] = (cells[2].strip("*"), f"{cells[3]} ({cells[4]})")
    return found


def test_the_table_of_claims_is_that_of_the_reports():
    digits, faces = _verdicts("mnist32"), _verdicts("celeba32_small")
    assert digits.keys() == faces.keys()
    assert len(digits) >= 20
    lines = (ROOT / "docs" / "claims.md").read_text().splitlines()
    for (claim, arm), verdict in digits.items():
        assert f"| `{claim}` | {arm} | {' | '.join((*verdict, *faces[claim, arm]))} |" in lines


def test_the_readme_counts_claims_as_the_reports_do():
    counts = []
    for study in ("mnist32", "celeba32_small"):
        text = (ROOT / "reports" / f"claims-{study}" / "report.md").read_text()
        found = re.search(r"sentences (\d+) (?:is|are) supported, (\d+) refuted", text)
        assert found
        counts.append(found.groups())
    (held, refuted), (held_faces, refuted_faces) = counts
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert (
        f"{held} of them held on digits and {held_faces} on faces; {refuted} and {refuted_faces} were refuted" in readme
    )
