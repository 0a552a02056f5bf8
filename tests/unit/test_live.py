"""The live view of a sweep, as it is on a terminal."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from harness.cli.display import LOADING, TrainingProgress, at_terminal
from harness.cli.live import SweepView, display
from harness.gan.trainer import Progress
from harness.spec.files import load_study_file
from harness.sweep.messages import Ended, Opened, Progressed, Said, Scored, Scoring, Started
from tests.unit.test_confirmed import PLAN_SPEC, plan
from tests.unit.test_report import record, trial


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(view: SweepView, *, width: int = 80, height: int = 40) -> list[str]:
    console = Console(width=width, height=height, record=True, file=io.StringIO())
    console.print(view)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_rows_fit_80_columns_with_their_reasons_and_the_header_knows_the_hours(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    view = SweepView(load_study_file("mnist32"), target=8, hours=1.0, began=now[0], rung_metric="fid_mnv2_250")
    for number in range(4):
        view.update(Started(number=number))
        view.update(Progressed(number=number, kimg=50.5, images_per_s=12345.0))
        view.update(Scored(number=number, kimg=50.5, score=1234.5))
    reason = "RuntimeError: " + "a long reason " * 9
    view.update(Ended(number=1, state="FAIL", reason=reason))
    view.update(Ended(number=2, state="COMPLETE", value=1234.56))
    view.update(Ended(number=3, state="PRUNED", reason="fid_mnv2_250 at 6 kimg: 71.33; the bar was 71.32"))
    view.update(Scoring(number=0))
    now[0] += 71
    lines = shown(view)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert reason.strip() in text, "nothing is cut"
    assert any(line.endswith("at 6 kimg: 71.33; the bar was 71.32") for line in lines), "in one line"
    assert any("rung score, 71 s" in line for line in lines)
    assert "ends at the latest in 58.8 min (HOURS=1)" in text
    now[0] += 3600
    assert "time is up, finishing (HOURS=1)" in " ".join(" ".join(shown(view)).split())


def test_a_low_terminal_shows_what_runs_and_the_newest():
    view = SweepView(load_study_file("mnist32"), target=40)
    for number in range(40):
        view.update(Started(number=number))
        if number != 3:
            view.update(Ended(number=number, state="WAITING", reason="paused at 6 kimg"))
    view.update(Ended(number=5, state="FAIL", reason="RuntimeError: " + "a long reason " * 9))
    lines = shown(view, height=24)
    assert len(lines) <= 24
    rows = [line.split()[:2] for line in lines if line[:5].strip().isdigit()]
    assert rows[0] == ["3", "running"]
    assert rows[-1] == ["39", "paused"]


def test_a_trial_that_is_promoted_stays_among_those_that_were_tried():
    view = SweepView(load_study_file("mnist32"), target=4)
    for number in range(2):
        view.update(Started(number=number))
        view.update(Scored(number=number, kimg=6.0, score=9.0))
        view.update(Ended(number=number, state="WAITING", reason="paused at 6 kimg"))
    assert view.status == "2 of 4 trials tried, 0 trained to the end"
    view.update(Started(number=1, kimg=6.0))
    assert view.status == "2 of 4 trials tried, 0 trained to the end"


def test_after_a_resume_earlier_rows_are_complete_and_a_persons_interruption_is_no_failure():
    earlier = record(
        trial(0, value=60.0),
        trial(1, "FAIL", attrs={"reason": "interrupted: stopped at 9.0 kimg; saved"}),
        trial(2, "PRUNED", attrs={"reason": "fid_mnv2_250 at 9 kimg: 42; the bar was 41"}),
    )
    view = SweepView(load_study_file("mnist32"))
    assert "of 0 trials" not in " ".join(shown(view)), "how many are wanted is not known yet"
    view.update(Opened(record=earlier, target=14))
    rows = [line.split() for line in shown(view) if line[:5].strip().isdigit()]
    assert rows == [
        ["0", "finished", "54.0", "40", "60.00", "best"],
        ["1", "interrupted", "9.0", "41", "stopped", "at", "9.0", "kimg;", "saved"],
        ["2", "pruned", "9.0", "42", "at", "9", "kimg:", "42;", "the", "bar", "was", "41"],
    ]


def test_what_is_said_stays_above_the_table_and_what_takes_long_shows_for_how_long(monkeypatch):
    monkeypatch.setattr("sys.stdout", screen := Terminal())
    view = SweepView(load_study_file("mnist32"), target=4)
    with display(view) as show:
        show(view.update(Said(text="301 images are few for a DCGAN")), kept=True)
        show(view.update(Started(number=0, params={"lr_g": 0.0002})))
        show(view.update(Said(text="closing the study")), kept=True)
    assert "301 images are few for a DCGAN\n" in screen.getvalue().replace("\r", "")
    assert "lr_g=0.0002" not in screen.getvalue(), "the table has it"

    now = [time.monotonic()]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    view.update(Said(text="closing the study again"))
    view.update(Started(number=1))
    view.update(Said(text="opening MLflow"))
    now[0] += 12
    text = " ".join(" ".join(shown(view)).split())
    assert "opening MLflow, 12 s" in text
    assert "begins, 12 s" in text


def test_with_hours_that_end_before_it_no_other_end_is_estimated(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for hours, estimated in ((1.0, True), (0.05, False)):
        view = SweepView(load_study_file("mnist32"), target=8, started=now[0], began=now[0], hours=hours)
        view.update(Started(number=0))
        now[0] += 12
        view.update(Scored(number=0, kimg=6.0, score=120.0))
        assert bool(view.time_left) == estimated


@pytest.mark.parametrize(("columns", "losses"), [(80, False), (130, True)])
def test_a_trainings_bar_fits_80_columns_with_the_time_left_and_a_step_after_it_has_a_bar(monkeypatch, columns, losses):
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setattr("rich._console", None)  # which has the width of its first use
    monkeypatch.setenv("COLUMNS", str(columns))
    event = Progress(step=9, kimg=1012.5, curve={"loss_d": 1.234, "loss_g": 0.912}, images_per_s=12345.0)
    with TrainingProgress("udacity32_wide-as_coded") as progress:
        progress.progress(event, 2000.0)
        progress.say("scoring 500 images")
        console = Console(width=columns, record=True, file=io.StringIO())
        console.print(progress.bar.get_renderable())
    training, working = console.export_text().splitlines()
    assert "1,012.5 of 2,000.0 kimg  12,345 images/s" in training and "━" in training
    assert re.search(r"-:--:--|\d:\d\d:\d\d", training)
    assert ("loss_d 1.234, loss_g 0.912" in training) == losses
    assert "━" in working


def test_what_takes_seconds_before_anything_is_shown_is_said_at_a_terminal_alone(monkeypatch, capsys):
    at_terminal(LOADING)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("sys.stdout", screen := Terminal())
    at_terminal(LOADING)
    assert screen.getvalue() == "loading PyTorch\n"


def test_a_confirmation_shows_configuration_and_seed():
    view = SweepView(PLAN_SPEC)
    view.update(Opened(record=plan({"trial-1": [40.0]}), target=15))
    running = PLAN_SPEC.presets[-1].name
    view.update(Started(number=1, params={"preset": running}))
    lines = shown(view)
    (head,) = (index for index, line in enumerate(lines) if line.startswith("trial "))
    assert [line.split()[:2] for line in lines[head + 1 :]] == [
        [PLAN_SPEC.presets[0].name, "finished"],
        [running, "running"],
    ]
    assert max(map(len, lines)) <= 80
