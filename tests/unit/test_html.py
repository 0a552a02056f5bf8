"""A page that is forwarded: all in one file, and nothing in it that a study's texts could smuggle in."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from PIL import Image

from harness.report.page import page_to_html, write_html
from tests.conftest import ROOT

PAGE = """# Study <b>

Text with `code` and **weight**.

| name | score |
|---|---:|
| a | 1.5 |

![A figure](figure.png)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (3, 2), "red").save(tmp_path / "figure.png")
    (tmp_path / "report.md").write_text(PAGE)
    return tmp_path


def test_figures_are_inside_and_nothing_is_loaded(folder):
    path = write_html(folder / "report.md")
    text = path.read_text()
    data = re.search(r'src="data:image/png;base64,([^"]+)" alt="A figure"', text).group(1)
    assert base64.b64decode(data) == (folder / "figure.png").read_bytes()
    assert "http:" not in text.replace("http-equiv", "")
    assert "https:" not in text
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert write_html(folder / "report.md").read_text() == text


def test_tables_keep_their_alignment(folder):
    text = write_html(folder / "report.md").read_text()
    assert '<td style="text-align:right">1.5</td>' in text
    assert text.count("<table>") == text.count("</table></div>") == 1


@pytest.mark.parametrize(
    "evil",
    ["<script>alert(1)</script>", '<img src=x onerror="alert(1)">', "[click](javascript:alert(1))",
     "![x](javascript:alert(1))", "</style><script>1</script>"],
)  # fmt: skip
def test_texts_of_a_study_are_shown_and_not_obeyed(folder, evil):
    text = page_to_html(f"# T\n\n{evil}\n\n| a |\n|---|\n| {evil} |\n", folder, title=evil)
    body = text.split("</style>\n", 1)[1]
    assert not re.search(r"<(script|img)", body)
    assert 'href="javascript' not in body
    assert re.search(r"<title>[^<]*</title>", text)


@pytest.mark.parametrize("source", ["missing.png", "../secret.png", "/etc/hostname", "report.md"])
def test_an_image_that_is_not_the_reports_is_named_instead(folder, source):
    Image.new("RGB", (3, 2)).save(folder.parent / "secret.png")
    text = page_to_html(f"![Figure]({source})", folder, title="T")
    assert "base64" not in text
    assert f"<em>Figure: no image {source}</em>" in text


@pytest.mark.parametrize("study", ["mnist32", "mnist32_pareto"])
def test_the_committed_page_is_that_of_the_committed_report(study):
    page = ROOT / "reports" / study / "report.md"
    assert page.with_suffix(".html").read_text() == page_to_html(page.read_text(), page.parent, title=study)


def test_what_is_folded_has_a_summary_and_nothing_else_is_obeyed(folder):
    fold = "<details><summary>More & <b>more</b></summary>\n\n| a |\n|---|\n| <details> |\n\n</details>\n\nAfter.\n"
    body = page_to_html(f"# T\n\n{fold}", folder, title="T").split("</style>\n", 1)[1]
    assert "<details><summary>More &amp; &lt;b&gt;more&lt;/b&gt;</summary>\n<div" in body
    assert body.count("<details>") == body.count("</details>") == 1
    assert "</table></div>\n</details>\n<p>After.</p>" in body
