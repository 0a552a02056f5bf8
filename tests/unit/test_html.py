"""A page that is forwarded: all in one file, and nothing in it that a study's texts could smuggle in."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from harness.report.page import page_to_html, write_html
from harness.report.plots import new_figure, to_svg
from tests.browser import CHROMIUM, Page
from tests.conftest import ROOT

PAGE = """# Study <b>

Text with `code` and **weight**.

| name | score |
|---|---:|
| a | 1.5 |

![A figure](figure.png)
"""


def body_of(text: str) -> str:
    return text.split("<main>")[1].split("</main>")[0]


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
    assert "default-src 'none'" in text and " src=" not in text.replace(' src="data:', "")
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
    body = body_of(text)
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
    text = page.read_text()
    title = text.splitlines()[0].removeprefix("# ")
    assert page.with_suffix(".html").read_text() == page_to_html(text, page.parent, title=title)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("study", ["mnist32", "mnist32_pareto"])
def test_a_report_is_readable_on_a_telephone_on_paper_and_in_the_dark(tmp_path, study):
    page = Page(tmp_path / "profile")
    try:
        page.open((ROOT / "reports" / study / "report.html").as_uri())
        page.shows("Best configurations")
        page.run("document.querySelectorAll('details').forEach(fold => fold.open = true)")
        beyond = "part => part.getBoundingClientRect().right > innerWidth + 1"
        page.show_as(390)
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), "the page itself never moves sideways"
        page.show_as(718, media="print")  # of A4 with its margins; what scrolls on a screen is cut off on paper
        parts = f"[...document.querySelectorAll('main *')].filter({beyond}).map(part => part.outerHTML.slice(0, 80))"
        assert page.run(parts) == []
        colours = (
            "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name].match(/\\d+/g).map(Number))"
        )
        for scheme in ("light", "dark"):
            page.show_as(1280, scheme=scheme)
            ink, paper = (sum(rgb) for rgb in page.run(colours))
            assert (paper > 600 and ink < 200) if scheme == "light" else (paper < 200 and ink > 600)
    finally:
        page.close()


def test_what_is_folded_has_a_summary_and_nothing_else_is_obeyed(folder):
    fold = "<details><summary>More & <b>more</b></summary>\n\n| a |\n|---|\n| <details> |\n\n</details>\n\nAfter.\n"
    body = page_to_html(f"# T\n\n{fold}", folder, title="T").split("</style>\n", 1)[1]
    assert "<details><summary>More &amp; &lt;b&gt;more&lt;/b&gt;</summary>\n<div" in body
    assert body.count("<details>") == body.count("</details>") == 1
    assert "</table></div>\n</details>\n<p>After.</p>" in body


def test_the_page_runs_the_script_that_sorts_its_tables_and_no_other(folder):
    text = write_html(folder / "report.md").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert "addEventListener" in script and not re.search("fetch|import|XMLHttp|innerHTML|eval", script)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'\"" in text


def dom(page: Path) -> str:
    """The page as a browser has it once its scripts ran."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or pytest.skip("no Chromium here")
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        f"--user-data-dir={page.parent}/p",
    ]
    return subprocess.run([*command, page.as_uri()], capture_output=True, text=True, check=True, timeout=120).stdout


def test_a_click_on_a_column_sorts_its_table_and_what_is_smuggled_in_does_not_run(folder):
    table = "\n".join(
        ["| name | n | word |", "|---|---:|---|", "| b | 1,688 | x |", "| a | – | z |", "| c | 40.2 | y |"]
    )
    orders = {(0, 1): "abc", (0, 2): "cba", (1, 1): "cba", (1, 2): "bca", (2, 1): "bca"}
    page = write_html_of(folder, "\n\n".join([table] * len(orders)))
    clicks = [
        f"document.querySelectorAll('table')[{place}].querySelectorAll('th')[{column}].click();" * times
        for place, (column, times) in enumerate(orders)
    ]
    text = page.read_text().replace("</body>", f"<script>{''.join(clicks)}</script></body>")
    page.write_text(re.sub("<meta http-equiv[^>]*>", "", text))
    seen = dom(page)
    found = ["".join(re.findall(r"<tr>\s*<td>([abc])", part)) for part in seen.split("<table>")[1:]]
    assert found == [*orders.values()]
    assert seen.count(' aria-sort="') == len(orders), "each table says by which column"
    page.write_text(text)
    assert ' aria-sort="' not in dom(page), "the page's policy allows its own script alone"


def write_html_of(folder: Path, markdown: str) -> Path:
    (folder / "report.md").write_text(f"# T\n\n{markdown}\n")
    return write_html(folder / "report.md")


def test_a_drawing_is_inside_with_what_a_pointer_sees(folder):
    figure, (axis,) = new_figure(3, 2)
    axis.scatter([1], [2], gid='trial 3: FID 40 · bn "a" <b>')
    (folder / "drawing.svg").write_text(to_svg(figure))
    body = body_of(write_html_of(folder, "![Scores](drawing.svg)").read_text())
    assert re.search('<g><title>trial 3: FID 40 · bn ["\\w&;]*a["\\w&;]* &lt;b&gt;</title>', body)
    assert '<span class="drawing" role="img" aria-label="Scores"><svg ' in body
    assert "http" not in body and "<?xml" not in body and "<!DOCTYPE" not in body


def test_parts_are_placed_by_name_and_nothing_else_is_obeyed(folder):
    markdown = '<div class="screen">\n\nIn.\n\n</div>\n\n<div class="x" onclick="y">\n\n<div id="z">\n'
    body = body_of(page_to_html(markdown, folder, title="T"))
    assert '<div class="screen">\n<p>In.</p>\n</div>\n' in body
    assert body.count("<div") == 1 and "&lt;div id=" in body
