"""Time: a budget of hours, a word before a long study, a command at the end."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from harness.cli import main
from harness.cli.display import objects
from harness.cli.then import running_then
from harness.errors import SweepError, UsageError
from harness.forecast.before import surely_short
from harness.spec.files import load_study_file, parse_study
from harness.spec.resolved import with_budget
from harness.store.records import StudyAttrs, StudyRecord
from harness.sweep.hours import TimeBudget
from harness.sweep.messages import Ended, Opened, Progressed, Scoring, Started, Watcher
from tests.conftest import ROOT, TINY_STUDY


@pytest.mark.parametrize(
    ("hours", "deadline_s"), [(1.0, 3570.0), (0.05, 162.0)], ids=["half a minute for the report", "a tenth"]
)
def test_time_is_kept_for_the_report(hours, deadline_s):
    budget = TimeBudget(load_study_file("photos32"), hours, 1, started=0.0)
    assert budget.deadline == pytest.approx(deadline_s)


def trained(budget, kimg, seconds, *, trials=8):
    """The budget after this many trials were trained to ``kimg`` each in so many seconds, on a CPU."""
    budget.close_in_time(None, Watcher(on_event=lambda event: None, stop_level=lambda: 0), "cpu")
    budget._note(Opened(record=StudyRecord(name="s", attrs=StudyAttrs(), trials=()), target=24))
    for number in range(trials):
        budget._note(Started(number=number))
        budget._note(Progressed(number=number, kimg=kimg, images_per_s=1.0))
    budget._first -= seconds
    return budget


def test_what_is_left_is_what_the_best_of_those_begun_still_train_and_score():
    """Of 8 trials at a rung of 6 kimg 3 train 12 kimg more, and one 36 more, a second each; it is scored."""
    budget = trained(TimeBudget(load_study_file("photos32"), 1.0, 1), 6, seconds=48)
    left = budget._left_s(time.monotonic(), 8)
    assert left == pytest.approx(3 * 12 + 36 + 140, abs=2), "until one was timed: Inception scores 4 images/s"
    budget._note(Scoring(number=0))
    budget._scoring[0] -= 30
    budget._note(Ended(number=9, state="PRUNED"))
    assert budget._final_s is None
    budget._note(Ended(number=0, state="COMPLETE", value=1.0))
    assert budget._final_s == pytest.approx(30, abs=1)
    assert TimeBudget(load_study_file("photos32"), 1.0, 1)._left_s(0.0, 0) == 0, "nothing is known yet"


def test_the_only_final_score_is_finished_though_the_time_is_over():
    budget = TimeBudget(load_study_file("photos32"), 1.0, 1)
    watcher = budget.close_in_time(None, Watcher(on_event=lambda event: None, stop_level=lambda: 0), "cpu")
    for event in (Started(number=0), Progressed(number=0, kimg=6.0, images_per_s=1.0), Scoring(number=0)):
        watcher.on_event(event)
    budget.started -= 3600
    assert watcher.stop_level() == 1, "that is a rung's score"
    watcher.on_event(Progressed(number=0, kimg=54.0, images_per_s=1.0))
    watcher.on_event(Scoring(number=0))
    assert (watcher.stop_level(), budget.is_over) == (0, True)
    watcher.on_event(Ended(number=0, state="COMPLETE", value=1.0))
    watcher.on_event(Started(number=1))
    assert watcher.stop_level() == 1


def test_with_verdicts_each_running_trial_may_come_to_its_end():
    study = parse_study("s", TINY_STUDY, shown_as="s")
    budget = trained(TimeBudget(study, 1.0, 1), 0.1, seconds=0.8)
    assert budget._left_s(time.monotonic(), 8) == pytest.approx(0.3 * 1.0 + 20, abs=0.2)


def test_small_studies_are_not_measured_before_they_start():
    for name, short in {"celeba32_small-quick": True, "photos32": True, "photos64": False, "celeba32": False}.items():
        study = load_study_file(name)
        assert surely_short(study, study.budget.trials, 3600) is short, name


@pytest.mark.parametrize(
    ("typed", "answer"), [("n\n", True), ("No\n", True), ("\n", False), ("y\n", False), ("", False)]
)
def test_a_person_at_a_terminal_may_say_no(monkeypatch, typed, answer):
    """A pseudo-terminal; who types nothing is waited for, and then it starts."""
    theirs, ours = os.openpty()
    with os.fdopen(ours, "r+b", buffering=0) as raw, os.fdopen(theirs, "r+b", buffering=0) as person:
        terminal = os.fdopen(os.dup(raw.fileno()), "r")
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr(sys, "stdout", os.fdopen(os.dup(raw.fileno()), "w"))
        person.write(typed.encode())
        assert objects("now?", 0.2 if not typed else 30) is answer
        sys.stdout.close()
        terminal.close()


def test_without_a_terminal_nobody_is_asked(monkeypatch):
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert not objects("now?", 1000)


def says(path) -> str:
    """A command that writes how the sweep ended into a file."""
    told = "sorted(f'{k}={v}' for k, v in os.environ.items() if k.startswith('SWEEP_'))"
    code = f"import os, sys; open(sys.argv[1], 'w').write('|'.join({told}))"
    return f'{sys.executable} -c "{code}" {path}'


def test_a_command_runs_at_the_end_and_is_told_how_it_came(tmp_path):
    with running_then(says(tmp_path / "done"), "mine") as outcome:
        outcome["SWEEP_REPORT"] = "reports/mine/report.md"
    assert (
        tmp_path / "done"
    ).read_text() == "SWEEP_REPORT=reports/mine/report.md|SWEEP_STATE=finished|SWEEP_STUDY=mine"
    with pytest.raises(SweepError), running_then(says(tmp_path / "failed"), "mine"):
        raise SweepError("three trials failed at postgresql://me:secret@db/x")
    text = (tmp_path / "failed").read_text()
    assert text == "SWEEP_ERROR=three trials failed at postgresql://db/x|SWEEP_STATE=failed|SWEEP_STUDY=mine"
    with pytest.raises(KeyboardInterrupt), running_then(says(tmp_path / "stopped"), "mine"):
        raise KeyboardInterrupt
    assert "SWEEP_STATE=interrupted" in (tmp_path / "stopped").read_text()


@pytest.mark.parametrize("command", ["no-such-program-anywhere now", 'say "unclosed'])
def test_a_command_that_cannot_run_is_refused_before_the_sweep(command):
    with pytest.raises(UsageError, match="--then"), running_then(command, "mine"):
        raise AssertionError("nothing was to be run")


def test_no_shell_reads_the_command(tmp_path):
    with running_then(f"touch {tmp_path / 'a;b'} '{tmp_path / '$HOME'}'", "mine"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["$HOME", "a;b"]


def test_a_command_that_fails_is_said_and_changes_nothing(capsys):
    with running_then("false", "mine"):
        pass
    assert "--then: false failed with exit code 1" in capsys.readouterr().err


def test_quick_studies_are_studies(monkeypatch, tmp_path, capsys):
    quick = load_study_file("photos32-quick")
    whole = load_study_file("photos32")
    assert (quick.name, quick.budget.trials) == ("photos32-quick", 6)
    assert quick == with_budget(whole, quick=True, trials=None, kimg=None)
    assert with_budget(quick, quick=True, trials=None, kimg=None) == quick, "QUICK=1 is nothing new to it"
    with pytest.raises(UsageError, match="study mnist32 cannot be run with --quick: it has no"):
        load_study_file("mnist32-quick")
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "runs"))
    monkeypatch.setenv("HARNESS_SEARCH_SPACES", str(ROOT / "search_spaces"))
    monkeypatch.delenv("DATA", raising=False)
    for words in (["sweep"], ["plan"], ["data", "prepare"], ["claims"]):
        assert main([*words, "photos32-quick"]) == 1
        assert "photos32-quick" in capsys.readouterr().err, words


def test_a_file_of_that_name_is_itself(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_SEARCH_SPACES", str(tmp_path))
    (tmp_path / "a.toml").write_text(TINY_STUDY)
    (tmp_path / "a-quick.toml").write_text(TINY_STUDY.replace("trials = 4", "trials = 7"))
    assert load_study_file("a-quick").budget.trials == 7
