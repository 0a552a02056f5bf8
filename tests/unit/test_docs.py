"""The documents: links lead somewhere, commands and study files are ones that the harness takes, words are plain."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

import harness
from harness.cli import front
from harness.cli.verbs import SECTIONS
from harness.gan.hparams import FIELDS
from harness.spec.study import StudySpec
from tools import prose, site

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


def blocks(language: str) -> list[str]:
    """Code blocks of one language of all pages but the reports."""
    texts = [page.read_text() for page in PAGES if page.name != "report.md"]
    return [block for text in texts for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)]


def test_a_whole_study_in_a_page_is_valid_and_parts_of_one_are_toml():
    studies = [content for content in map(tomllib.loads, blocks("toml")) if "budget" in content]
    assert [StudySpec(name="shown", **content).budget.trials for content in studies] == [16]


def test_words_are_plain_and_lines_short():
    assert list(prose.findings()) == []


@pytest.mark.parametrize("line", ["It goes on.", "Do it anew.", "Whichever is sooner.", "long " * 30])
def test_what_reads_badly_is_found(line):
    assert list(prose.markdown(line))
    assert not list(prose.markdown(f"```\n{line}\n```"))


def test_generated_pages_have_every_command_key_and_public_name():
    assert re.findall(r"^### (\S+)$", site.commands_page(), re.M) == [
        verb for verbs in SECTIONS.values() for verb in verbs
    ]
    keys = set(re.findall(r"^\| `(\w+)` \|", site.keys_page(), re.M))
    assert keys >= {*StudySpec.model_fields, *FIELDS} - {"name", "image_size", "channels"}
    assert {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", site.api_page(), re.M)} >= {*harness.__all__}


def test_links_of_the_site_follow_the_files_that_are_moved_into_it(tmp_path):
    site.stage(tmp_path / "docs")
    assert "(reports/claims-mnist32/report.html)" in (tmp_path / "docs" / "claims.md").read_text()
    assert "(architecture.md)" in (tmp_path / "docs" / "contributing.md").read_text()
    assert "examples/residual.py is a complete example" in (tmp_path / "docs" / "guides" / "network.md").read_text()


def test_dead_links_and_addresses_that_a_browser_would_load_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#there">b</a><a href="b.html#gone">b</a><a href="c.html">c</a>')
    (tmp_path / "b.html").write_text('<p id="there"></p><script src="https://example.com/x.js"></script>')
    assert len(found := site.problems(tmp_path)) == 3
    assert {sentence.split()[0] for sentence in found} == {"a.html", "b.html"}


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
    assert f"on digits {held} were supported, {refuted} refuted and " in readme
    assert f"on faces {held_faces} supported, {refuted_faces} refuted and " in readme
