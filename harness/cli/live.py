"""A sweep as a person sees it: a live table in a terminal or a notebook, lines elsewhere."""

from __future__ import annotations

import functools
import io
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.cli.display import complain, say, visible
from harness.machine.signals import StopSignals, in_notebook, run_interruptibly
from harness.scoring.protocol import INCEPTION, MOBILENET
from harness.spec.resolved import ResolvedStudy
from harness.sweep import messages
from harness.sweep.run import SweepResult
from harness.text import counted, duration, number, scored

# A notebook's table is drawn this often (seconds).
_DRAW_EVERY_S = 0.5
# Work that takes longer shows its duration (seconds).
_LONG_S = 5.0
# Billions of multiplications for one image's features: the cost of one score relative to another.
_COST = {INCEPTION: 5.7, MOBILENET: 0.3}
_DONE = ("COMPLETE", "PRUNED")
_BEGINS = "begins"  # until the first images are shown
_INTERRUPTED = "interrupted"  # as the reasons of such trials begin
_CONTINUED = "continued as trial"
_STYLES = {"COMPLETE": "green", "PRUNED": "dim", "FAIL": "red", "RUNNING": "bold"}
_WORDS = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "paused"}
# Rows of trials, at most; fewer where the terminal is lower.
_ROWS = 20


class Show(Protocol):
    """Shows what changed, and a line of the log; one that people should still read later is ``kept`` on the screen."""

    def __call__(self, line: str | None, *, kept: bool = False) -> None: ...


def watch(
    spec: ResolvedStudy,
    sweep: Callable[..., SweepResult],
    *,
    progress: bool = True,
    raises: bool = False,
    hours: float | None = None,
) -> SweepResult:
    """Run ``run_sweep`` or ``join_sweep``, given with its arguments; Ctrl-C stops it at a checkpoint.

    With ``raises``, or before anything is trained, Ctrl-C ends in a KeyboardInterrupt.
    """
    # Before there are workers, nothing is lost where a second Ctrl-C ends a wait for a lock or a server.
    view, stop = SweepView(spec, hours=hours), StopSignals(complain, raise_at_two=True)
    with display(view, progress=progress) as show:

        def on_progress(done: int, total: int) -> None:
            stop.raise_if_interrupted()  # the half-made store is removed
            view.doing = f"preparing images: {done:,} of {total:,}"
            if done == total or done % 2000 == 0:
                show(view.doing)

        def on_event(event: messages.Event) -> None:
            stop.raise_at_two = stop.raise_at_two and not isinstance(event, messages.Opened)
            show(view.update(event), kept=isinstance(event, messages.Said | messages.Crashed))

        watcher = messages.Watcher(
            on_event=on_event,
            on_progress=on_progress,
            stop_level=lambda: stop.level,
        )
        result = run_interruptibly(functools.partial(sweep, watcher=watcher), stop)
    if raises:
        stop.raise_if_interrupted()
    return result


@contextmanager
def display(view: SweepView, *, progress: bool = True) -> Iterator[Show]:
    """A function that shows the view and a line of its log; without ``progress`` it shows nothing."""
    if not progress:
        yield lambda line, kept=False: None
    elif in_notebook():
        with _notebook_table(view) as show:
            yield show
    elif sys.stdout.isatty():
        from rich.live import Live

        with Live(view, refresh_per_second=4, transient=False) as live:

            def print_above(line: str | None, *, kept: bool = False) -> None:
                if line and kept:
                    live.console.print(visible(line), markup=False, highlight=False)

            yield print_above
    else:
        yield _say_if_heard


def _say_if_heard(line: str | None, *, kept: bool = False) -> None:
    """Say a line; a sweep continues if its reader is gone, such as a killed ``| tee log``."""
    if line:
        with suppress(BrokenPipeError):
            say(line)


@contextmanager
def _notebook_table(view: SweepView) -> Iterator[Show]:
    """The live table in the output of a notebook's cell, updated in place."""
    from IPython.display import HTML
    from IPython.display import display as show_output

    def html() -> HTML:
        console = Console(record=True, width=120, height=40, file=io.StringIO(), force_jupyter=False)
        console.print(view)
        return HTML(console.export_html(inline_styles=True, code_format="<pre>{code}</pre>"))  # type: ignore[no-untyped-call]

    output, drawn_at = show_output(html(), display_id=True), 0.0  # type: ignore[no-untyped-call]

    def draw(line: str | None, *, kept: bool = False) -> None:
        nonlocal drawn_at
        if time.monotonic() - drawn_at >= _DRAW_EVERY_S:
            drawn_at = time.monotonic()
            output.update(html())

    yield draw
    output.update(html())


@dataclass(slots=True)
class _Row:
    number: int
    name: str = ""  # in a fixed study, which configuration and seed it is
    state: str = "RUNNING"
    kimg: float = 0.0
    rate: float = 0.0
    rung: float | None = None
    value: float | None = None
    reason: str = ""
    doing: str = ""
    since: float | None = None  # when the scoring began


@dataclass(slots=True)
class SweepView:
    """The state of a sweep as a person sees it; fed with the workers' messages."""

    spec: ResolvedStudy
    rows: dict[int, _Row] = field(default_factory=dict)
    target: int = 0
    rung_metric: str = ""
    doing: str = "starting"
    doing_since: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.monotonic)
    hours: float | None = None  # that the sweep may take
    began: float = field(default_factory=time.monotonic)
    finished_before: int = 0
    trained_before: float = 0.0
    complete_before: int = 0
    at_once: int = 1  # trials that ran at the same time
    # Seconds of the fastest rung score (the first one also computes the real images' features), and of all final ones.
    rung_s: float | None = None
    finals_s: float = 0.0

    @property
    def finished(self) -> int:
        return sum(row.state in _DONE for row in self.rows.values())

    @property
    def trained_kimg(self) -> float:
        return sum(row.kimg for row in self.rows.values() if row.state != "FAIL")

    @property
    def status(self) -> str:
        if not self.spec.promotions:
            return f"{self.finished} of {counted(self.target, 'trial')} finished"
        tried = sum(
            row.state in (*_DONE, "WAITING") or (row.rung is not None and _CONTINUED not in row.reason)
            for row in self.rows.values()
        )
        return f"{tried} of {counted(self.target, 'trial')} tried, {self.complete} trained to the end"

    @property
    def best(self) -> _Row | None:
        done = [row for row in self.rows.values() if row.state == "COMPLETE" and row.value is not None]
        return min(done, key=lambda row: row.value or 0.0, default=None)

    @property
    def complete(self) -> int:
        return sum(row.state == "COMPLETE" for row in self.rows.values())

    @property
    def final_s(self) -> float:
        """Mean seconds of a final score so far; before the first, estimated from rung scores; 0 before any score."""
        fresh = self.complete - self.complete_before
        if fresh:
            return self.finals_s / fresh
        final, rung = self.spec.scoring.final, self.spec.scoring.rung
        images = final.samples * (self.spec.scoring.sampling_seeds or 1) / rung.samples
        return (self.rung_s or 0.0) * images * _COST[final.extractor] / _COST[rung.extractor]

    @property
    def hours_left_s(self) -> float:
        """Of the hours that the sweep may take (s); endless where it may take as long as it likes."""
        return self.began + self.hours * 3600 - time.monotonic() if self.hours else math.inf

    @property
    def time_left(self) -> str:
        """An estimate in words; empty before the first rung is scored, and if the sweep's hours end before."""
        bound, left = self._estimate()
        return f"{bound} {duration(left)} left" if 0 < left < self.hours_left_s else ""

    def _estimate(self) -> tuple[str, float]:
        """(about or at most, seconds), 0 if not known.

        From the pace of this call's trials, with running ones as half done. It is a bound while only presets have
        finished, because they are seldom pruned. With promotion, and before a trial has finished, it is computed from
        the images trained, the images that the study is expected to train, and the final scores to come.
        """
        fresh = self.finished - self.finished_before
        if self.spec.promotions or not fresh:
            if self.spec.promotions:
                all_kimg, finals = self.spec.expected_kimg(self.target), self.spec.funnel(self.target)[-1]
            else:
                all_kimg, finals = self.target * self.spec.budget.kimg, self.target
            fresh_kimg, left_kimg = self.trained_kimg - self.trained_before, max(0.0, all_kimg - self.trained_kimg)
            if not fresh_kimg or all(row.rung is None for row in self.rows.values()):
                return "", 0.0
            pace = max(0.0, time.monotonic() - self.started - self.finals_s / self.at_once) / fresh_kimg
            scoring_s = max(0, finals - self.complete) * self.final_s / self.at_once
            return "about" if self.spec.promotions else "at most", pace * left_kimg + scoring_s
        running = sum(row.state == "RUNNING" for row in self.rows.values()) / 2
        pace = (time.monotonic() - self.started) / (fresh + running) if fresh else 0.0
        left = pace * max(0.0, self.target - self.finished - running)
        presets = range(len(self.spec.presets) if self.spec.pruner.name != "none" else 0)
        searched = any(row.number not in presets and row.state in _DONE for row in self.rows.values())
        return "about" if searched or not presets else "at most", left

    def update(self, event: messages.Event) -> str | None:
        """Process an event; return a line for the log if it deserves one."""
        before = self.doing
        line = self._update(event)
        if self.doing != before:
            self.doing_since = time.monotonic()
        return line

    def _update(self, event: messages.Event) -> str | None:
        match event:
            case messages.Opened():
                self.target, self.rung_metric = event.target, event.record.attrs.rung_metric
                for trial in event.record.trials:  # an earlier call finished these
                    if trial.shown_state in (*_DONE, "FAIL", "PAUSED"):
                        value = trial.value if trial.state == "COMPLETE" else None
                        at = max(trial.intermediate, default=0)
                        reached = max(at / 1000, trial.attrs.saved_kimg or 0.0)
                        kimg = self.spec.budget.kimg if trial.state == "COMPLETE" else reached
                        rung = trial.intermediate.get(at)
                        name = trial.attrs.preset if self.spec.plan else ""
                        self.rows[trial.number] = _Row(
                            trial.number, name, trial.state, kimg, rung=rung, value=value, reason=trial.reason
                        )
                self.finished_before, self.started = self.finished, time.monotonic()
                self.trained_before, self.complete_before = self.trained_kimg, self.complete
            case messages.Said(text=text):
                self.doing = text
                return text
            case messages.Crashed(text=text):
                self.doing = f"a worker failed: {text}"
                return self.doing
            case messages.Ready():
                self.doing = "ready"
            case messages.OfTrial():
                self.doing = "training"
                return self._update_row(self.rows.setdefault(event.number, _Row(event.number)), event)
        return None

    def _update_row(self, row: _Row, event: messages.OfTrial) -> str | None:
        now, since = time.monotonic(), row.since if row.doing != _BEGINS else None
        row.doing, row.since = "", None
        match event:
            case messages.Scoring():
                row.doing, row.since = "rung score" if self.spec.has_rungs else "final score", now
            case messages.Started():
                before = None if event.retry_of is None else self.rows.get(event.retry_of)
                if before:
                    stopped = f"{_INTERRUPTED}: " if before.reason.startswith(_INTERRUPTED) else ""
                    before.state, before.doing = "FAIL", ""
                    before.reason = f"{stopped}{_CONTINUED} {row.number}"
                row.state, row.kimg, row.value, row.reason = "RUNNING", event.kimg, None, ""
                row.doing, row.since = _BEGINS, now
                row.name = str(event.params.get("preset", "")) if self.spec.plan else ""
                self.at_once = max(self.at_once, sum(each.state == "RUNNING" for each in self.rows.values()))
                shown = ", ".join(f"{name}={number(value)}" for name, value in event.params.items())
                resumed = f", continues at {row.kimg:.1f} kimg" if row.kimg else ""
                return f"trial {row.number} starts{resumed}: {shown}"
            case messages.Progressed():
                row.kimg, row.rate = event.kimg, event.images_per_s
            case messages.Scored():
                row.kimg, row.rung = event.kimg, event.score
                self.rung_s = min(filter(None, (self.rung_s, since and now - since)), default=None)
                said = f"trial {row.number}: {row.kimg:.1f} kimg, rung score {number(row.rung)}"
                if row.kimg >= self.spec.budget.kimg:
                    row.doing, row.since, said = "final score", now, f"{said}; the final score is next"
                return said
            case messages.Ended():
                row.state, row.value, row.reason = event.state, event.value, event.reason
                self.finals_s += now - since if since and row.state == "COMPLETE" else 0.0
                score = f", score {scored(row.value)}" if row.value is not None else ""
                word, reason = self._state(row), row.reason.removeprefix(f"{_INTERRUPTED}: ")
                ended = f"{word}{score}{f' ({reason})' if reason else ''}" if row.state != "WAITING" else reason
                eta = f", {self.time_left}" if self.time_left else ""
                return f"trial {row.number} {ended}; {re.sub(' trials?', '', self.status, count=1)}{eta}"
        return None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The live table: as many trials as there is room for, those that run before others, and the newest."""
        head, best = self._head(), self.best
        room = options.size.height - len(console.render_lines(head, options))
        by_need = sorted(self.rows.values(), key=lambda row: (row.state == "RUNNING", row is best, row.number))
        shown = by_need[-_ROWS:]
        while len(shown) > 1 and len(console.render_lines(self._table(shown), options)) > room:
            shown.pop(0)
        yield head
        yield self._table(shown)

    def _head(self) -> Text:
        best, since = self.best, time.monotonic() - self.doing_since
        status = [
            self.status if self.target else "",
            f"best {scored(best.value)} (trial {best.number})"
            if best and best.value is not None
            else "no final score yet",
            self.time_left,
            "" if self.doing == "training" and self.time_left else visible(_for_long(self.doing, since)),
        ]
        if self.hours:
            left = self.hours_left_s
            ends = f"ends at the latest in {duration(left)}" if left > 0 else "time is up, finishing"
            status.append(f"{ends} (HOURS={self.hours:g})")
        return Text(f"study {self.spec.name}: ", style="bold") + Text(" · ".join(filter(None, status)))

    def _table(self, rows: Sequence[_Row]) -> Table:
        best = self.best
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), expand=True)
        rung, final = (score.metric.upper() for score in (self.spec.scoring.rung, self.spec.scoring.final))
        for name in ("trial", "state", "kimg", f"rung {rung}", f"final {final}"):
            left = name == "state" or (name == "trial" and self.spec.plan)
            table.add_column(name, justify="left" if left else "right", no_wrap=True)
        table.add_column("", ratio=1)
        for row in sorted(rows, key=lambda row: row.number):
            table.add_row(
                row.name or str(row.number),
                Text(self._state(row), style=_STYLES.get(row.state, "")),
                f"{row.kimg:.1f}" if row.kimg else "",
                "" if row.rung is None else number(row.rung),
                Text("" if row.value is None else scored(row.value), style="bold green" if row is best else ""),
                self._progress(row) if row.state == "RUNNING" else "best" if row is best else self._why(row),
            )
        return table

    def _state(self, row: _Row) -> str:
        return _INTERRUPTED if row.reason.startswith(_INTERRUPTED) else _WORDS[row.state]

    def _progress(self, row: _Row) -> Table:
        """How far a trial is, and how fast; or what it waits for, and for how long already where that is long."""
        grid = Table.grid(padding=(0, 1, 0, 0))
        rate = f"{row.rate:,.0f} images/s" if row.rate else ""
        doing = _for_long(row.doing, time.monotonic() - row.since) if row.since else row.doing
        grid.add_row(ProgressBar(total=self.spec.budget.kimg, completed=row.kimg, width=8), doing or rate)
        return grid

    def _why(self, row: _Row) -> Text:
        """Why a trial ended or waits, without what other columns of its row say."""
        return Text(visible(row.reason.removeprefix(f"{_INTERRUPTED}: ").removeprefix(f"{self.rung_metric} ")))


def _for_long(doing: str, seconds: float) -> str:
    return f"{doing}, {duration(seconds)}" if doing and seconds >= _LONG_S else doing
