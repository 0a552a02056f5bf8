"""What the README and the guides show: their commands run, their Python too, and so does the notebook."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from harness.home import Home
from tests.conftest import ROOT, blob_files, sharing_weights
from tests.e2e.test_sweep import Here
from tests.faults.checks import QUICK
from tests.unit.test_new import photographs

# What takes too long here, or another machine: the test that runs it.
ELSEWHERE = {
    "ui": "contract/test_views.py",
    "train": "e2e/test_recipes.py",
    "worker": "e2e/test_machines.py",
}
STAND_INS = {"mnist32": "tiny", "photos32": "tiny", "celeba32": "tiny", "/path/to/celeba": "images"}


def commands() -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line.partition("#")[0] for language, block in blocks if not language for line in block.splitlines()]


@pytest.fixture(scope="module")
def here(tmp_path_factory, weights_home: Home) -> Here:
    """A working folder with the study ``tiny``, its images, and photographs."""
    folder = tmp_path_factory.mktemp("readme")
    made = Here(folder, sharing_weights(folder, weights_home), blob_files(folder / "images", 40))
    photographs(folder / "photos")
    (folder / "search_spaces" / "tiny.toml").write_text(QUICK)
    return made


@pytest.fixture
def folder(here) -> Path:
    return here.folder


def environment(folder: Path, **variables: str) -> dict[str, str]:
    ours = {"PYTHONPATH": str(ROOT), "HARNESS_HOME": str(folder / "runs"), "DEVICE": "cpu", "DATA": "images"}
    return {**os.environ, **ours, "STUDY": "tiny", "TOP": "1", "SEEDS": "2", "SAMPLINGS": "1", **variables}


def test_every_command_of_the_readme_runs(here, folder):
    """In their order, on a small study: as make does it, a variable is one of the environment."""
    ran = []
    for command in commands():
        for name, there in STAND_INS.items():
            command = command.replace(name, there)
        program, *words = shlex.split(command.replace("/path/to/photos", "photos" if " new " in command else "images"))
        assert program in ("make", "harness")
        if (verb := words[0]) in ELSEWHERE:
            assert (ROOT / "tests" / ELSEWHERE[verb]).is_file()
            continue
        given = dict(word.split("=", 1) for word in words if program == "make" and "=" in word)
        words = [word for word in words if program == "harness" or "=" not in word]
        here.run(*words, **environment(folder, **given))
        ran.append(verb)
    assert {"sweep", "generate", "new", "confirm", "audit", "recipes"} <= {*ran}
    assert "confirmed" in (folder / "reports" / "tiny" / "report.md").read_text().lower()
    assert (folder / "grid.png").is_file() and (folder / "search_spaces" / "family.toml").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/guides/generator.md"])
def test_the_python_of_the_pages_runs(folder, page):
    """After the commands, on the same small study; the lines without the harness have a test of their own."""
    text = (ROOT / page).read_text().partition("<!-- plain")[0]
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    for there, here in {
        'Study("mnist32")': 'Study("tiny", data="images")', '"mnist32"': '"images"', "reports/mnist32": "reports/tiny",
        "kimg=50": "kimg=0.1", "5_000": "24", "1_000": "24", "trials=10": "trials=4",
        "top=5, seeds=5": "top=1, seeds=2, samplings=1",
    }.items():  # fmt: skip
        code = code.replace(there, here)
    if "study = " not in code:
        code = 'import harness\nharness.Study("tiny", data="images").run(trials=4)\n' + code
    (folder / "page.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_notebook_runs(folder, monkeypatch):
    """As it stands, with a tenth of its images, or a little more."""
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)
    text = (ROOT / "examples" / "sweep.ipynb").read_text()
    for long, short in {
        '"kimg": 9, "rungs": [1, 3, 6]': '"kimg": 0.9, "rungs": [0.1, 0.3, 0.6]', '"samples": 250': '"samples": 25',
        '"samples": 100': '"samples": 20', '"reference": 1000': '"reference": 100',
    }.items():  # fmt: skip
        long, short = (words.replace('"', '\\"') for words in (long, short))
        assert long in text
        text = text.replace(long, short)
    notebook = nbformat.reads(text, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert sum("image/png" in data for data in shown) == 2, "the figure and the samples"
    assert (folder / "reports" / "digits" / "report.md").is_file()
