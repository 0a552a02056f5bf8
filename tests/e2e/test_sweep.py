"""A real sweep of a tiny study through the command line: Optuna, MLflow and the report must agree."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from harness.cli import main
from harness.errors import SweepError, UsageError
from harness.findings.headline import headline
from harness.findings.ranking import leading
from harness.gan.hparams import digest
from harness.home import Home
from harness.machine.forks import call_in_fork, call_with_torch
from harness.machine.processes import choose_device
from harness.store.records import StudyRecord
from harness.store.studies import started_study, study_to_record
from harness.tracking.mlflow import STATUS
from tests.browser import CHROMIUM
from tests.conftest import ROOT, TINY_STUDY, blob_files, sharing_weights
from tests.e2e.views import click_through
from tests.faults.checks import QUICK
from tests.servers import free_port

HARNESS = [sys.executable, "-c", "import sys; from harness.cli import main; sys.exit(main())"]
TELLING = [
    sys.executable, "-c",
    "import sys; from harness.cli import main; code = main(); print('torch' in sys.modules); sys.exit(code)",
]  # fmt: skip


class Project:
    """A working folder with a tiny study, as a user has it."""

    def __init__(self, folder: Path, home: Home, images: Path):
        self.folder, self.home, self.images = folder, home, images
        (folder / "search_spaces").mkdir()
        (folder / "search_spaces" / "tiny.toml").write_text(TINY_STUDY)
        self.env = {
            **os.environ, "HARNESS_HOME": str(home.root), "DATA": str(images), "STUDY": "tiny", "DEVICE": "cpu",
            "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip

    def start(self, *arguments: str, command: Sequence[str] = HARNESS, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *arguments], cwd=self.folder, env={**self.env, **environment}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str, code: int = 0, **environment: str) -> str:
        return finish(self.start(*arguments, **environment), code)

    def record(self, study: str = "tiny") -> StudyRecord:
        return study_to_record(started_study(study, self.home))


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


class Here(Project):
    """Runs commands in this process: what torch and MLflow take to be imported is paid once."""

    def run(self, *arguments: str, code: int = 0, **environment: str) -> str:
        said = io.StringIO()
        own = {name: value for name, value in self.env.items() if os.environ.get(name) != value}
        with pytest.MonkeyPatch.context() as patched, redirect_stdout(said), redirect_stderr(said):
            patched.chdir(self.folder)
            for name, value in {**own, **environment}.items():
                patched.setenv(name, value)
            try:
                found = main(list(arguments))
            except SystemExit as stopped:  # argparse
                found = stopped.code
        assert found == code, said.getvalue()
        assert "Traceback" not in said.getvalue()
        return said.getvalue()


@pytest.fixture(scope="module")
def project(tmp_path_factory, weights_home: Home) -> Here:

    folder = tmp_path_factory.mktemp("project")
    images = blob_files(folder / "images", 40)
    made = Here(folder, sharing_weights(folder, weights_home, mlflow_database=False), images)
    (folder / "search_spaces" / "tiny.toml").write_text(QUICK)
    made.first_output = finish(made.start("sweep", command=TELLING))
    return made


def mlflow_children(project: Project):
    from mlflow.entities import ViewType

    from harness.tracking.client import client_for

    client = client_for(project.home)
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL, max_results=1000)
    parent = project.record().attrs.mlflow_parent
    return client, parent, [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]


def assert_mlflow_agrees(project: Project) -> None:
    """One to one in number, state, parameters and final score."""
    record = project.record()
    client, _, children = mlflow_children(project)
    by_trial = {int(run.data.tags["trial"]): run for run in children}
    started = [trial for trial in record.trials if trial.state != "WAITING"]
    assert len(children) == len(by_trial) == len(started)
    for trial in started:
        run = by_trial[trial.number]
        assert run.info.status == STATUS[trial.state]
        assert run.data.tags["trial_state"] == trial.state
        # A published system was not asked for any: what the others search is shown, as it has it.
        own = trial.attrs.hparams
        wanted = trial.params or {name: own.get(name, own.get(f"{name}_g")) for name in run.data.params}
        assert run.data.params == {name: str(value) for name, value in wanted.items()}
        assert json.loads(run.data.tags["hparams"]) == trial.attrs.hparams
        if not trial.attrs.diverged:
            curve = client.get_metric_history(run.info.run_id, record.attrs.rung_metric) if trial.intermediate else []
            assert {point.step: point.value for point in curve} == pytest.approx(dict(trial.intermediate))
        if trial.state == "COMPLETE":
            assert run.data.metrics[record.attrs.final_metric] == pytest.approx(trial.value)


def test_sweep_reaches_its_budget_and_everything_agrees(project):
    record = project.record()
    assert sum(trial.state in ("COMPLETE", "PRUNED") for trial in record.trials) == 4
    assert record.trials[0].attrs.preset == "paper"
    assert_mlflow_agrees(project)
    assert started_study("tiny", project.home).metric_names == [record.attrs.final_metric]
    report = (project.folder / "reports" / "tiny" / "report.md").read_text()
    found = headline(record)
    assert found.kind in ("collapsed", "too short"), "after 0.4 kimg"
    assert f"**{found.text}**" in report
    assert "\n".join(found.lines).replace("--data PATH", f"--data {project.images}") in project.first_output
    for trial in record.complete:
        assert re.search(rf"^\| \d \| {trial.number}( \(paper\))?( collapsed)? \|", report, re.MULTILINE)
    assert "![Real images](real.png)" in report and "![Samples of trial 0](trial-0.png)" in report
    for name in re.findall(r"\]\((\S+\.(?:png|svg))\)", report):
        assert (project.folder / "reports" / "tiny" / name).is_file()
    assert "4 of 4 trials finished; report: reports/tiny/report.md" in project.first_output


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_the_saved_views_and_compare_show_scores_parameters_and_pictures(project, tmp_path):
    port = free_port()
    click_through(project.record(), project.start("ui", "--port", str(port)), port, tmp_path / "profile")


def test_what_is_written_where(project):
    names = {path.name for path in project.home.root.iterdir() if not path.name.startswith(".")}
    assert names == {"optuna.db", "mlflow.db", "artifacts", "trials", "data", "weights", "references"}
    assert {path.name for path in project.folder.iterdir()} == {"images", "search_spaces", "runs", "reports"}


def test_mlflow_has_what_a_person_looks_for(project):
    client, parent_id, children = mlflow_children(project)
    record = project.record()
    parent = client.get_run(parent_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"].startswith("# tiny")
    assert "report/report.md" in {item.path for item in client.list_artifacts(parent_id, "report")}
    assert parent.data.tags.items() >= headline(record).tags.items()
    assert parent.data.metrics["best_fid_mnv2_24"] == pytest.approx(leading(record)[0].value)
    assert digest(record.attrs.protocols["final"]) == record.best.attrs.protocol_hash
    run = next(run for run in children if run.data.tags["trial"] == str(record.best.number))
    tags = run.data.tags
    for name in ("git_commit", "spec_hash", "protocol_hash", "seed", "versions", "device", "trial_state"):
        assert tags[name]
    curve = client.get_metric_history(run.info.run_id, "loss_d")
    assert [point.step for point in curve] == sorted({point.step for point in curve})
    assert curve[-1].step == 400
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == record.attrs.dataset["fingerprint"][:12]
    artifacts = {item.path for folder in ("", "model", "checkpoint", "images")
                 for item in client.list_artifacts(run.info.run_id, folder or None)}  # fmt: skip
    assert {"curve.json", "hparams.json", "model/generator.safetensors", "model/hparams.json"} <= artifacts
    assert any(path.startswith("checkpoint/snapshot-") for path in artifacts)
    assert sum(path.startswith("images/samples+step+") and path.endswith(".png") for path in artifacts) == 3
    assert sum(path.startswith("images/final_samples+step+0+") and path.endswith(".png") for path in artifacts) == 1
    assert "kimg" not in run.data.metrics


def test_again_continues_extends_and_the_report_keeps_its_bytes(project):
    folder = project.folder / "reports" / "tiny"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "4 of 4 trials finished" in project.run("sweep")
    assert len(project.record().trials) == 4
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "6 of 6 trials finished" in project.run("sweep", TRIALS="6", WORKERS="2")
    assert "6 of 6 trials finished" in project.run("sweep"), "what was wanted last is not said again"
    record = project.record()
    assert sum(trial.state in ("COMPLETE", "PRUNED") for trial in record.trials) == 6
    points = [json.dumps(trial.params, sort_keys=True) for trial in record.trials]
    assert len(set(points)) == len(points), "no worker repeats another's point"
    client, parent_id, _ = mlflow_children(project)
    shown = client.get_run(parent_id).data.metrics
    assert shown["best_fid_mnv2_24"] == pytest.approx(leading(record)[0].value)
    assert shown["trials_complete"] == len(record.complete)
    assert_mlflow_agrees(project)


def test_a_score_is_checked_with_torch_fidelitys_own_command(project):
    """The commands that the report prints, as it prints them, where the score is Inception's."""
    study = TINY_STUDY.replace("trials = 4", "trials = 1")
    (project.folder / "search_spaces" / "inception.toml").write_text(study)
    project.run("sweep", "inception")
    best = project.record("inception").best
    report = (project.folder / "reports" / "inception" / "report.md").read_text()
    lines = [
        line
        for line in report.splitlines()
        if line.startswith(("harness generate", "harness data", "harness wei", "fidelity"))
    ]
    *making, checking = lines[-4:]  # above are the next commands
    for line in making:
        project.run(*line.replace("PATH", str(project.images)).split()[1:], DATA="")
    command = [
        str(Path(sys.executable).with_name("fidelity")),
        *checking.split()[1:],
        "--json",
        "--silent",
        "--no-cache",
    ]
    done = subprocess.run([*command, "--save-cpu-ram"], cwd=project.folder, capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout[done.stdout.index("{") :])
    assert best.value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)


def test_train_and_generate_from_the_report(project):
    output = project.run("train", "--config", "reports/tiny/best.toml", "--kimg", "0.8")
    assert "trained 0.8 kimg: fid_mnv2_24 " in output
    folder = Path(re.search(r"curve are in (\S+)", output).group(1))
    batch = json.loads((folder / "hparams.json").read_text())["batch_size"]
    grids = len(list(folder.glob("grid-*.png")))
    assert grids == 1 + 800 / (40 // batch * batch), "one before training and after every epoch"
    client, _, _ = mlflow_children(project)
    (run,) = client.search_runs([client.get_experiment_by_name("trainings").experiment_id])
    assert run.data.tags["study"] == "tiny"
    assert json.loads(run.data.tags["hparams"]) == json.loads((folder / "hparams.json").read_text())
    assert {"ngf", "ndf", "z_dim"} <= run.data.params.keys(), "what is not the plain DCGAN's"
    assert "adam_eps" not in run.data.params
    among_trials = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], "tags.role = 'training'")
    assert not among_trials
    assert (folder / "generator.safetensors").is_file()
    output = project.run("generate", "--study", "tiny", "--best", "-n", "16", "--out", "grid.png")
    assert "16 images of trial" in output
    assert (project.folder / "grid.png").is_file()
    listed = project.run("studies")
    assert "studies" not in listed.split("\n")[0]
    assert "tiny" in listed


def test_another_search_space_under_the_same_name_is_refused(project):
    path = project.folder / "search_spaces" / "tiny.toml"
    path.write_text(QUICK.replace("reference = 24", "reference = 20"))
    try:
        output = project.run("sweep", code=2)
    finally:
        path.write_text(QUICK)
    assert "scoring.final.reference: was 24, is 20" in output
    assert "new name" in output


def test_other_images_under_the_same_name_are_refused(project, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(project.images, other)
    (other / "000.png").unlink()
    assert "was started on other images" in project.run("sweep", code=1, DATA=str(other))


def test_too_few_images_is_an_error_before_training(project, tmp_path):
    import shutil

    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(project.images.iterdir())[:20]:
        shutil.copy(path, few)
    output = project.run("sweep", code=1, DATA=str(few), HARNESS_HOME=str(tmp_path / "runs"))
    assert "20 usable images are too few for study tiny:" in output
    assert "scoring.final.reference is 24 images: at most 20\n" in output
    assert "scoring.rung.reference is 24 images: at most 20\n" in output
    assert not (tmp_path / "runs" / "trials").exists()


def test_a_batch_larger_than_the_data_is_an_error_before_training(project, tmp_path):
    space = QUICK.replace("choices = [8, 16]", "choices = [16, 64]")
    (tmp_path / "large.toml").write_text(space)
    output = project.run("sweep", str(tmp_path / "large.toml"), code=1, HARNESS_HOME=str(tmp_path / "runs"))
    assert "40 usable images are too few for study large:\n  space.batch_size reaches 64: at most 40\n" in output


def wait_for(process: subprocess.Popen[str], pattern: str) -> str:
    seen = ""
    for line in process.stdout:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"{pattern!r} never came:\n{seen}")


def test_ctrl_c_loses_nothing(tmp_path, weights_home, image_folder):
    """Once: stops at the next checkpoint. Twice: at once. Then on to the same budget, with MLflow in agreement."""
    project = Here(tmp_path, sharing_weights(tmp_path, weights_home), image_folder)
    # Long enough that the signal always comes during the first trial.
    study = QUICK.replace("kimg = 0.4", "kimg = 6").replace("rungs = [0.1]", "rungs = [2]")
    (tmp_path / "search_spaces" / "tiny.toml").write_text(study)
    for presses, begun in ((1, "trial 0 starts"), (2, r"trial 1 starts, continues at \d")):
        process = project.start("sweep", TRIALS="2")
        wait_for(process, begun)
        os.kill(process.pid, signal.SIGINT)
        if presses == 2:
            wait_for(process, "stopping at the next checkpoint")
            os.kill(process.pid, signal.SIGINT)
        assert "the same command continues where this one stopped" in finish(process, 130)
        stopped = project.record().trials[presses - 1]
        assert stopped.state == "FAIL"
        assert stopped.reason.startswith("interrupted")
        assert_mlflow_agrees(project)
    assert "2 of 2 trials finished" in project.run("sweep", TRIALS="2")
    record = project.record()
    chain = [trial for trial in record.trials if trial.attrs.retry_of is not None]
    assert [trial.attrs.retry_of for trial in chain] == [0, 1]
    assert all(trial.params == record.trials[0].params for trial in chain)
    assert {trial.state for trial in record.trials[2:]} <= {"COMPLETE", "PRUNED"}
    assert_mlflow_agrees(project)


def test_what_needs_torch_is_asked_of_a_process_that_has_it(project, monkeypatch):
    assert project.first_output.endswith("False\n"), "the supervisor imported torch"
    assert call_with_torch(os.getpid) == os.getpid() != call_in_fork(os.getpid), "torch is imported here"
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("HARNESS_MACHINE", "elsewhere")
    assert call_with_torch(os.getpid) != os.getpid()
    assert call_with_torch(os.getenv, "HARNESS_MACHINE") == "elsewhere"
    with pytest.raises(UsageError, match="DEVICE='tpu' is not known"):
        call_with_torch(choose_device, "tpu")
    with pytest.raises(SweepError, match="died"):
        call_with_torch(os._exit, 1)
