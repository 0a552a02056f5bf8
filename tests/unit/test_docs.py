"""The documents: links lead somewhere, and commands are ones that the harness takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from harness.cli.parser import make_parser

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
        assert f"\n{words[0]}: ;" in makefile
    assert make_parser().parse_args(words).run is not None
