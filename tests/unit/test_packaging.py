"""What an installed package has and does without a clone: its wheel, unpacked, in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

from harness.machine.provenance import git_commit
from harness.spec.files import file_names, spaces_dir
from tests.conftest import ROOT, TINY_STUDY


def run(installed: Path, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HARNESS_", "PYTHON"))}
    environment = kept | {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"} | variables
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_has_every_study_recipe_and_claim_its_licence_and_its_types(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    spaces = {f"harness/{path.relative_to(ROOT)}" for path in (ROOT / "search_spaces").rglob("*.toml")}
    assert {name for name in names if name.endswith(".toml")} == spaces
    assert {"harness/py.typed", "harness/report/templates/study.md.j2"} < set(names)
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert not [name for name in names if not name.startswith(("harness/", "dcgan_sweep_harness-"))]


def test_an_installed_package_sweeps_from_an_empty_folder_and_writes_nothing_beside_itself(installed, tmp_path):
    before = sorted(installed.rglob("*"))
    code = "from harness.spec.files import file_names, spaces_dir; print(spaces_dir(), *file_names('study'))"
    done = run(installed, tmp_path, "-c", code)
    assert done.stdout.split() == [str(installed / "harness" / "search_spaces"), *file_names("study")]
    study = TINY_STUDY.replace('"folder"', '"mnist"')
    study = study.replace("[scoring.final]", '[scoring.final]\nextractor = "mobilenet-v2"')  # the small one
    (tmp_path / "tiny.toml").write_text(study)
    harness = "import sys; from harness.cli import main; sys.exit(main())"  # as the console script
    done = run(installed, tmp_path, "-c", harness, "sweep", "tiny.toml", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5,000" in done.stdout
    assert sorted(installed.rglob("*")) == before


def test_a_folder_of_ones_own_wins_and_the_variable_wins_over_all(installed, tmp_path):
    code = "from harness.spec.files import spaces_dir; print(spaces_dir())"
    (tmp_path / "search_spaces").mkdir()
    assert run(installed, tmp_path, "-c", code).stdout == "search_spaces\n"
    assert run(installed, tmp_path, "-c", code, HARNESS_SEARCH_SPACES="mine").stdout == "mine\n"


def test_a_clone_uses_its_own_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("HARNESS_SEARCH_SPACES", raising=False)
    monkeypatch.chdir(tmp_path)
    assert spaces_dir() == ROOT / "search_spaces"


def test_the_commit_is_that_of_a_clone_and_never_of_a_repository_around_an_installed_package(installed):
    code = "from harness.machine.provenance import git_commit; print(git_commit())"
    git = ["git", "-C", str(installed), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "another project"], check=True)
    assert run(installed, installed, "-c", code).stdout == "unknown\n", "it does not track the package"
    subprocess.run([*git, "add", "--sparse", "harness/__init__.py"], check=True)
    assert run(installed, installed, "-c", code).stdout == "unknown\n", "no commit of it has the package"
    subprocess.run([*git, "commit", "-q", "-m", "vendored"], check=True)
    hook = {"GIT_DIR": str(installed / ".git"), "GIT_WORK_TREE": str(installed)}
    code_of_hook = f"import os; os.environ.update({hook}); {code}"
    ours = subprocess.run([sys.executable, "-c", code_of_hook], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ours.stdout == f"{git_commit()}\n", "a hook of another repository runs"
    shutil.move(installed / ".git", installed.parent / ".git")
    try:
        assert run(installed, installed, "-c", code).stdout == "unknown\n", "its top is another folder"
    finally:
        shutil.rmtree(installed.parent / ".git")
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?", git_commit())


def test_constraints_pin_the_whole_tested_set_by_names_and_versions_only():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+", line) for line in lines)
    assert lines == sorted(lines, key=str.lower)
    assert installed_requirements() - {normal(line.partition("==")[0]) for line in lines} == set()


def installed_requirements() -> set[str]:
    """Packages that this project's dependencies and extras bring into this environment."""
    by_name = {normal(found.name): found for found in distributions()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    waiting = [Requirement(line) for line in [*project["dependencies"], *chain.from_iterable(extras)]]
    needed: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = normal(wanted.name)
        for extra in {"", *wanted.extras}:
            if name not in by_name or name == "dcgan-sweep-harness" or (name, extra) in needed:
                continue
            needed.add((name, extra))
            found = map(Requirement, by_name[name].requires or [])
            waiting += [line for line in found if line.marker is None or line.marker.evaluate({"extra": extra})]
    return {name for name, _ in needed}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
