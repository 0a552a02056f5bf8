"""``python -m tools.prose``: find long Markdown lines, and idioms that a reader has to read twice.

Checked are the pages that people write, and modules and templates of the packages in ``PYTHON``. Code, quotations and
tables may be as long as they are; code and quotations may say what they like.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
# Made by commands, from words of their own.
GENERATED = ("docs/recipes.md",)
PYTHON = (
    *("api", "cli", "data", "findings", "forecast", "gan", "machine"),
    *("report", "scoring", "spec", "store", "sweep", "tracking", "training"),
)
# Patterns from the beginning of a word, in any case, and what to write instead.
IDIOMS = {
    r"(go|goes|going|went|gone) on\b": "continue, continued",
    r"anew\b": "again, from scratch",
    r"sooner\b": "faster, earlier",
    r"so (many|much)\b": "that many; or name the number",
    r"beside\b": "next to, alongside, with",
    r"at hand\b": "available",
    r"(is|are|was|were) told\b": "is reported, is written to",
    r"(?<!there )(is|are|was|were) no (?!longer|better|more|less|faster|smaller|considerable)": "is not a …",
    r"nobody can say": "unknown",
    r"whoever|whichever": "the person, the one that",
    r"laid down": "defined",
    r"(comes|came) to (?!an end)": "reaches, reached",
    r"pays\b": "is faster, helps",
}
_IDIOM = {re.compile(rf"\b(?:{pattern})", re.IGNORECASE): better for pattern, better in IDIOMS.items()}


def findings() -> Iterator[str]:
    """A sentence for each line that should change."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")]
    for page in sorted(pages):
        name = page.relative_to(ROOT).as_posix()
        if name not in GENERATED:
            yield from (f"{name}:{line}: {what}" for line, what in markdown(page.read_text()))
    for room in PYTHON:
        for file in sorted([*(ROOT / "harness" / room).rglob("*.py"), *(ROOT / "harness" / room).rglob("*.j2")]):
            for line, text in enumerate(file.read_text().splitlines(), 1):
                yield from (f"{file.relative_to(ROOT).as_posix()}:{line}: {what}" for what in idioms(text))


def markdown(text: str) -> Iterator[tuple[int, str]]:
    """(line, what to change) of a page."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            words = re.sub(r"\]\([^)]*\)", "]", line)
            if len(words) > WIDTH and not line.lstrip().startswith(("|", ">", "<!--")):
                yield number, f"{len(line)} characters; wrap at {WIDTH}"
            for what in idioms(re.sub(r'`[^`]*`|"[^"]*"', "", line)):
                yield number, what


def idioms(line: str) -> Iterator[str]:
    for pattern, better in _IDIOM.items():
        if match := pattern.search(line):
            yield f"{match[0].strip()!r}: write {better}"


if __name__ == "__main__":
    found = list(findings())
    sys.stdout.writelines(f"{sentence}\n" for sentence in found)
    sys.exit(bool(found))
