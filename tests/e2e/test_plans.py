"""A study confirmed, and claims tested, through the command line; everything killed on the way loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from harness.home import Home
from harness.store.studies import started_study, study_to_record
from harness.training.run_folder import RunFolder
from tests.conftest import blob_files, sharing_weights
from tests.e2e.test_sweep import Here, Project, wait_for
from tests.faults.checks import QUICK

STUDY = QUICK.replace("kimg = 0.4", "kimg = 1.6").replace("rungs = [0.1]", "rungs = [0.8]")
CLAIM = """
title = "A high learning rate"
quote = "0.001 is too high"
source = "Somebody (2019)"
says = "worse"
relevant = 0.1
seeds = 2
[base]
batch_size = 8
[control]
lr = 2e-4
[treated.high]
lr = 1e-2
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory, weights_home: Home) -> Project:

    folder = tmp_path_factory.mktemp("plans")
    images = blob_files(folder / "images", 40)
    made = Here(folder, sharing_weights(folder, weights_home), images)
    (folder / "search_spaces" / "tiny.toml").write_text(STUDY)
    (folder / "search_spaces" / "claims").mkdir()
    (folder / "search_spaces" / "claims" / "high-lr.toml").write_text(CLAIM)
    made.env |= {"HARNESS_CHECKPOINTS": str(folder / "share")}
    made.env |= {"TOP": "1", "SEEDS": "2", "SAMPLINGS": "2", "HARNESS_CHECKPOINT_S": "0.2"}
    return made


def record(project: Project, name: str):
    return study_to_record(started_study(name, project.home))


def assert_each_training_ended_once(project: Project, name: str, count: int) -> None:
    trials = record(project, name).trials
    assert not [trial for trial in trials if trial.state in ("WAITING", "RUNNING")]
    done = Counter(trial.attrs.preset for trial in trials if trial.state in ("COMPLETE", "PRUNED"))
    assert len(done) == count
    assert set(done.values()) == {1}


def test_a_sweep_is_confirmed_though_everything_was_killed(project):
    project.run("sweep", TRIALS="2")
    calm = Home(project.folder / "calm")
    shutil.copytree(project.home.root, calm.root, symlinks=True)
    process = project.start("confirm")
    wait_for(process, r"trial 1 starts")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    output = project.run("confirm")
    assert "its worker was killed" in output
    plan = record(project, "tiny-confirm")
    arms = {trial.attrs.arm for trial in plan.trials}
    assert "paper" in arms
    assert f"{2 * len(arms)} of {2 * len(arms)} trainings finished" in output
    assert_each_training_ended_once(project, "tiny-confirm", 2 * len(arms))
    searched = {trial.attrs.seed for trial in record(project, "tiny").trials if trial.attrs.seed is not None}
    assert not searched & {trial.attrs.seed for trial in plan.complete}
    assert {len(trial.attrs.samplings) for trial in plan.complete} == {2}
    drawn = {len(RunFolder(project.home.root / str(trial.attrs.folder)).grids()) for trial in plan.complete}
    assert drawn == {4}, "at the beginning, a ninth, a third and the end, though they are scored at the end only"
    project.run("confirm", HARNESS_HOME=str(calm.root), HARNESS_CHECKPOINTS=str(project.folder / "calm-share"))
    undisturbed = study_to_record(started_study("tiny-confirm", calm))
    assert {t.attrs.preset: t.attrs.samplings for t in plan.complete} == {
        t.attrs.preset: t.attrs.samplings for t in undisturbed.complete
    }, "what was killed and gone on with has other scores than what was not"
    project.run("report", "tiny")
    report = project.folder / "reports" / "tiny"
    stated = json.loads((report / "report.json").read_text())
    assert stated["confirmed"]
    assert stated["headline"]["kind"] in ("collapsed", "too short"), "after 0.3 kimg"
    assert f"**{stated['headline']['text']}**" in (report / "report.md").read_text()
    following = stated["headline"]["next"].replace("--data PATH", f"--data {project.images}")
    assert stated["headline"]["text"] in output and f"next: {following}" in output
    best = tomllib.loads((report / "best.toml").read_text())
    assert best["study"] == "tiny-confirm"
    assert best["confirmed"]["training_seeds"] == sorted({trial.attrs.seed for trial in plan.complete})
    shown = project.run("generate", "--study", "tiny", "--best", "-n", "16", "--out", "grid.png")
    assert f"16 images of trial {best['trial']} ({best['confirmed']['configuration']}-seed-" in shown


def test_more_seeds_are_added_and_nothing_is_trained_twice(project):
    before = {trial.number: trial.value for trial in record(project, "tiny-confirm").complete}
    project.run("confirm", SEEDS="3")
    after = {trial.number: trial.value for trial in record(project, "tiny-confirm").complete}
    assert before.items() <= after.items()
    assert len(after) == len(before) // 2 * 3


def test_a_plan_is_confirmed_and_reported_through_its_study(project):
    assert "Run `harness confirm tiny`" in project.run("confirm", "tiny-confirm", code=2)
    assert project.run("report", "tiny-confirm").strip() == "reports/tiny/report.md"


def test_what_another_machine_trained_comes_from_the_share(project):
    wanted = {"best": ("--best",), "first": ("--trial", "0")}
    for name, which in wanted.items():
        project.run("generate", "--study", "tiny", *which, "-n", "16", "--out", f"{name}-here.png")
    for study in ("tiny", "tiny-confirm"):
        shutil.rmtree(project.home.root / "trials" / study)
    for name, which in wanted.items():
        project.run("generate", "--study", "tiny", *which, "-n", "16", "--out", f"{name}-there.png")
        here, there = (project.folder / f"{name}-{place}.png" for place in ("here", "there"))
        assert here.read_bytes() == there.read_bytes()


def test_studies_are_compared_and_reports_of_one_told_apart(project):
    report = project.folder / "reports" / "tiny"
    shutil.copytree(report, project.folder / "kept")
    (project.folder / "search_spaces" / "other.toml").write_text(STUDY.replace("choices = [8, 16]", "choices = [16]"))
    project.run("sweep", "other", TRIALS="1")
    assert project.run("report", "tiny", "other").strip() == "reports/compare-tiny-other/report.md"
    text = (project.folder / "reports" / "compare-tiny-other" / "report.md").read_text()
    assert "| space.batch_size.choices | [8, 16] | [16] |" in text
    assert "nothing changed" in project.run("report-diff", "kept", "reports/tiny")
    assert "reports of two studies" in project.run("report-diff", "kept", "reports/other", code=2)


def test_claims_are_tested_though_it_was_interrupted_and_a_changed_one_is_refused(project):
    process = project.start("claims", "--kimg", "1.2", "--seeds", "2")
    wait_for(process, r"trial 1 starts")
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    output = project.run("claims", "--kimg", "1.2", "--seeds", "2")
    assert "4 of 4 trainings finished; report: reports/claims-tiny/report.md" in output
    assert_each_training_ended_once(project, "tiny-claims", 4)
    folder = project.folder / "reports" / "claims-tiny"
    text = (folder / "report.md").read_text()
    assert "> 0.001 is too high" in text
    assert "| high-lr | high scores worse than the control, by at least 10 %, on the study's own settings | **" in text
    assert (folder / "high-lr.png").is_file()
    assert len(list(folder.glob("arm-*.png"))) == 2
    assert project.run("report", "tiny-claims").strip() == "reports/claims-tiny/report.md"
    path = project.folder / "search_spaces" / "claims" / "high-lr.toml"
    path.write_text(CLAIM.replace("relevant = 0.1", "relevant = 0.3"))
    refused = project.run("claims", "--kimg", "1.2", "--seeds", "2", code=2)
    assert "plan.claims.high-lr: was" in refused
    assert "budget.kimg: was 1.2, is 1.0" in project.run("claims", "--kimg", "1", "--seeds", "2", code=2)


def test_without_images_the_report_has_none(project):
    path: Path = project.folder / "search_spaces" / "claims" / "high-lr.toml"
    path.write_text(CLAIM)
    project.run("claims", "--kimg", "1.2", "--seeds", "2", "--no-images")
    folder = project.folder / "reports" / "claims-tiny"
    assert not list(folder.glob("arm-*.png"))
    assert "Uncurated" not in (folder / "report.md").read_text()
