"""The Python face, from the wheel: the whole way in a plain script and in a notebook. Examples of public docstrings."""

from __future__ import annotations

import doctest
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import harness
from harness.api.study import BestTrial
from harness.errors import CheckpointError, DataError, NotFoundError, UsageError
from harness.home import Home
from harness.machine import signals
from harness.machine.signals import StopSignals, run_interruptibly
from harness.store.studies import started_study, study_to_record
from tests.conftest import ROOT, blob_files, blobs, sharing_weights
from tests.e2e.test_sweep import wait_for
from tests.faults.checks import QUICK

# No `if __name__ == "__main__"`: a worker that imported it would begin a line, and a sweep, of its own.
SCRIPT = """
print("the script begins", flush=True)
import sys
import harness

assert harness.__file__.startswith("site0"), "the wheel's"
assert not {"torch", "optuna", "mlflow", "pandas", "click"} & set(sys.modules)
study = harness.Study("tiny", data="images")
result = study.run(trials=4, workers=2, device="cpu")
print(result)
print(study.trials_dataframe().to_string())
print(study.best.hparams)
confirmed = study.confirm(top=1, seeds=2, samplings=1, device="cpu", progress=False)
assert len(confirmed.trials_dataframe()) >= 2
print(study.report())
generator = study.best.generator()
images = generator.sample(64, seed=0)
assert images.shape == (64, 16, 16, 1) and images.dtype == "uint8"
assert (generator(generator.latents(64, seed=0)) == images).all()
for event in harness.train(study.best.hparams, "images", kimg=0.1, device="cpu"):
    print(event.step)
scores = harness.score(generator, "images", metrics=("fid", "kid", "is"), samples=24, device="cpu")
print(scores)
assert "fid24" in scores.values and scores.protocol_hash
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights_home: Home) -> Path:
    """A working folder with a study, images, and scoring weights."""
    made = tmp_path_factory.mktemp("python")
    sharing_weights(made, weights_home)
    blob_files(made / "images", 40)
    (made / "search_spaces").mkdir()
    (made / "search_spaces" / "tiny.toml").write_text(QUICK)
    return made


def start(folder: Path, script: str, package: Path = ROOT) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(package), "HARNESS_HOME": str(folder / "runs")}
    return subprocess.Popen([sys.executable, "script.py"], cwd=folder, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip


@pytest.fixture(scope="module")
def said(folder, installed) -> str:
    process = start(folder, SCRIPT.replace("site0", str(installed)), installed)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def test_the_whole_way_in_a_script_without_a_main_guard(folder, said):
    assert said.count("the script begins") == 1, "no worker imports it"
    assert "SweepResult(finished=4, target=4, interrupted=False, " in said
    assert "4 of 4 finished" in said, "plain lines where there is no terminal"
    assert (folder / "reports" / "tiny" / "best.toml").is_file()
    for column in ("number", "state", "lr", "batch_size", "rung_0.1kimg", "fid_mnv2_24", "seconds", "protocol"):
        assert column in said


def test_the_dataframe_has_every_trial_and_score(folder, said):
    home = Home(folder / "runs")
    frame = harness.Study(folder / "search_spaces" / "tiny.toml", home=home.root).trials_dataframe()
    record = study_to_record(started_study("tiny", home))
    started = [trial for trial in record.trials if trial.state != "WAITING"]
    assert list(frame["number"]) == [trial.number for trial in started]
    for (_, row), trial in zip(frame.iterrows(), started, strict=True):
        assert (row["state"], row["protocol"]) == (trial.state, trial.attrs.protocol_hash)
        assert row["seconds"] == pytest.approx(record.seconds(trial))
        assert {name: row[name] for name in trial.params} == trial.params
        assert {name: row[name] for name in trial.attrs.scores} == pytest.approx(dict(trial.attrs.scores))
        assert row["rung_0.1kimg"] == pytest.approx(trial.intermediate[100])


PUBLIC = [*(getattr(harness, name) for name in harness.__all__ if name != "StudySpec"), BestTrial]


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__name__)
def test_the_examples_of_public_docstrings_run(folder, said, thing, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HARNESS_HOME", str(folder / "runs"))
    tests = [each for each in doctest.DocTestFinder(recurse=True).find(thing, globs={}) if each.examples]
    assert tests
    reported: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test, out=reported.append)
    assert not runner.failures, "".join(reported)


NOTEBOOK = [
    "import signal, sys, harness\nbefore = signal.getsignal(signal.SIGINT)",
    "spec = harness.Study('tiny').spec.model_copy(update={'name': 'mine'})",
    "study = harness.Study(spec, data='images')\nstudy.run(trials=2, workers=2, device='cpu')",
    "assert signal.getsignal(signal.SIGINT) is before",
    "print(study.best.generator().sample(4).shape, study.report())",
    "study.trials_dataframe()",
]


def test_the_whole_way_in_a_notebook(folder, installed, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(installed))
    monkeypatch.setenv("HARNESS_HOME", str(folder / "runs"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in NOTEBOOK])
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    shown = [output for output in notebook.cells[2].outputs if output.output_type == "display_data"]
    assert len(shown) == 1, "one table, drawn in place"
    assert "2 of 2 trials finished" in shown[0].data["text/html"]
    assert "(4, 16, 16, 1) reports/mine/report.md" in notebook.cells[4].outputs[0].text
    assert "rung_0.1kimg" in notebook.cells[5].outputs[0].data["text/html"]


def test_ctrl_c_in_a_script_stops_at_a_checkpoint(folder):
    long = QUICK.replace("kimg = 0.4", "kimg = 6").replace("rungs = [0.1]", "rungs = [2]")
    (folder / "search_spaces" / "long.toml").write_text(long)
    process = start(folder, "import harness\nharness.Study('long', data='images').run(device='cpu')\nprint('went on')")
    wait_for(process, "trial 0 starts")
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode in (-signal.SIGINT, 130)
    assert "stopping at the next checkpoint" in output
    assert "KeyboardInterrupt" in output and "went on" not in output
    first = study_to_record(started_study("long", Home(folder / "runs"))).trials[0]
    assert first.state == "FAIL" and first.reason.startswith("interrupted")
    assert first.attrs.saved_kimg > 0


def test_an_interruption_of_a_notebook_stops_the_work_and_takes_no_signal_handler(monkeypatch):
    monkeypatch.setattr(signals, "in_notebook", lambda: True)
    stop, begun = StopSignals(lambda text: None), threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def work() -> int:
        assert threading.current_thread() is not threading.main_thread()
        begun.set()
        os.kill(os.getpid(), signal.SIGINT)  # the kernel's, which raises KeyboardInterrupt in the main thread
        while not stop.level:
            pass
        return stop.level

    assert run_interruptibly(work, stop) == 1
    assert begun.is_set() and signal.getsignal(signal.SIGINT) is before


def test_a_run_in_a_thread_takes_no_signal_handler():
    stop, seen = StopSignals(lambda text: None), []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(
        target=lambda: seen.append(run_interruptibly(lambda: signal.getsignal(signal.SIGINT), stop))
    )
    thread.start()
    thread.join()
    assert seen == [before]


def test_an_import_is_light():
    code = "import harness, sys; print(sorted({m.split('.')[0] for m in sys.modules}), dir(harness))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for heavy in ("torch", "optuna", "mlflow", "numpy", "pandas", "pydantic", "click"):
        assert f"'{heavy}'" not in done.stdout
    for name in harness.__all__:
        assert f"'{name}'" in done.stdout
    with pytest.raises(AttributeError, match="no attribute 'Studie'"):
        _ = harness.Studie


def test_a_mistyped_study_is_answered_with_the_nearest_name(folder, said, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(NotFoundError, match="no study 'tinny'") as missing:
        harness.Study("tinny", home=folder / "runs")
    assert "did you mean tiny?" in missing.value.problem


def test_a_generator_is_loaded_only_as_it_was_published(folder, said, monkeypatch):
    monkeypatch.chdir(folder)
    best = harness.Study("tiny", home=folder / "runs").best
    weights = best.folder / "generator.safetensors"
    own = harness.load_generator(weights)
    assert own.hparams == best.hparams
    assert (own.sample(3, seed=1) == best.generator().sample(3, seed=1)).all()
    named = Path("reports/tiny/best.toml").read_text()
    table = re.search(r"\[weights\]\n.*?\n\n", named, re.S)[0]
    for text in (named, named.replace(table, "")):  # older reports name no weights: those of the trial are taken
        Path("named.toml").write_text(text)
        assert harness.load_generator("named.toml", home=Home(folder / "runs")).hparams == best.hparams
    Path("named.toml").write_text(re.sub(r'sha256 = "\w+"', f'sha256 = "{"0" * 64}"', named))
    with pytest.raises(CheckpointError, match="its sha256 differs"):
        harness.load_generator("named.toml", home=Home(folder / "runs"))
    with pytest.raises(NotFoundError, match="no hparams.json"):
        harness.load_generator(folder / "images")


def test_scores_are_those_of_the_study_under_its_protocol(folder, said, monkeypatch):
    """The same generator, images and counts give the trial's own score, and its protocol's hash."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HARNESS_HOME", str(folder / "runs"))
    study = harness.Study("tiny")
    best = study.best
    scores = harness.score(
        best.generator(), "images", metrics=["fid"], samples=24, extractor="mobilenet-v2", device="cpu"
    )
    assert scores.values["fid_mnv2_24"] == pytest.approx(best.scores["fid_mnv2_24"], rel=1e-5)
    trial = next(t for t in study_to_record(started_study(best.study, study.home)).trials if t.number == best.number)
    assert scores.protocol_hash == trial.attrs.protocol_hash


def test_what_cannot_be_scored_or_trained_on_is_a_sentence(folder, monkeypatch):
    monkeypatch.setenv("HARNESS_HOME", str(folder / "runs"))
    with pytest.raises(UsageError, match="unknown metric 'fdi'") as unknown:
        harness.score(lambda z: z, blobs(24), metrics=["fdi"])
    assert "did you mean fid?" in unknown.value.problem
    with pytest.raises(DataError, match="values of type float64, not uint8"):
        next(harness.train(harness.HParams(image_size=16, channels=1), blobs(24) / 255, kimg=1, device="cpu"))
    with pytest.raises(UsageError, match="1 channels of 17 px"):
        harness.score(lambda z: z.new_zeros(len(z), 1, 17, 17), blobs(24), metrics=["fid"])
