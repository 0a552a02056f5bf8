"""What a sweep looks like on a terminal: a live table, or plain lines. Builds text; ``cli`` prints it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.spec.resolved import ResolvedStudy
from harness.store.records import StudyRecord
from harness.sweep.messages import (
    Crashed,
    Ended,
    Event,
    OfTrial,
    Opened,
    Progressed,
    Ready,
    Said,
    Scored,
    Scoring,
    Started,
)
from harness.text import duration, number, scored

_DONE = ("COMPLETE", "PRUNED")
_STYLES = {"COMPLETE": "green", "PRUNED": "dim", "FAIL": "red", "RUNNING": "bold"}


@dataclass(slots=True)
class _Row:
    number: int
    state: str = "RUNNING"
    kimg: float = 0.0
    rate: float = 0.0
    rung: float | None = None
    value: float | None = None
    reason: str = ""
    doing: str = ""


@dataclass(slots=True)
class SweepView:
    """The state of a sweep as a person sees it; fed with the workers' events."""

    spec: ResolvedStudy
    rows: dict[int, _Row] = field(default_factory=dict)
    target: int = 0
    doing: str = "starting"
    started: float = field(default_factory=time.monotonic)
    finished_before: int = 0

    def begin(self, record: StudyRecord, target: int) -> None:
        """Show the trials that an earlier call finished."""
        self.target = target
        for trial in record.trials:
            if trial.state in ("COMPLETE", "PRUNED", "FAIL"):
                value = trial.value if trial.state == "COMPLETE" else None
                self.rows[trial.number] = _Row(trial.number, trial.state, value=value, reason=trial.reason)
        self.finished_before = self.finished
        self.started = time.monotonic()

    @property
    def finished(self) -> int:
        return sum(row.state in _DONE for row in self.rows.values())

    @property
    def best(self) -> _Row | None:
        done = [row for row in self.rows.values() if row.state == "COMPLETE" and row.value is not None]
        return min(done, key=lambda row: row.value or 0.0, default=None)

    def seconds_left(self) -> float | None:
        """From the pace of this call's trials, running ones as half done; None before the first has finished."""
        fresh = self.finished - self.finished_before
        if not fresh:
            return None
        running = sum(row.state == "RUNNING" for row in self.rows.values()) / 2
        pace = (time.monotonic() - self.started) / (fresh + running)
        return pace * max(0.0, self.target - self.finished - running)

    @property
    def time_left(self) -> str:
        """In words, empty where it is not known: a bound while only presets, which are seldom pruned, have finished."""
        left = self.seconds_left()
        if not left:
            return ""
        presets = range(len(self.spec.presets) if self.spec.pruner.name != "none" else 0)
        searched = any(row.number not in presets and row.state in _DONE for row in self.rows.values())
        return f"{'about' if searched or not presets else 'at most'} {duration(left)} left"

    def update(self, event: Event) -> str | None:
        """Take an event in; return a line for a log where it deserves one."""
        match event:
            case Opened():
                self.begin(event.record, event.target)
            case Said(text=text):
                self.doing = text
                return text
            case Crashed(text=text):
                self.doing = f"a worker failed: {text}"
                return self.doing
            case Ready():
                self.doing = "ready"
            case OfTrial():
                self.doing = "training"
                return self._update_row(self.rows.setdefault(event.number, _Row(event.number)), event)
        return None

    def _update_row(self, row: _Row, event: OfTrial) -> str | None:
        row.doing = "scoring" if isinstance(event, Scoring) else ""
        match event:
            case Started():
                before = None if event.retry_of is None else self.rows.get(event.retry_of)
                if before and before.state == "RUNNING":
                    before.state, before.reason, before.doing = "FAIL", f"continued as trial {row.number}", ""
                row.state, row.kimg, row.value, row.reason = "RUNNING", event.kimg, None, ""
                shown = ", ".join(f"{name}={number(value)}" for name, value in event.params.items())
                resumed = f", continues at {row.kimg:.1f} kimg" if row.kimg else ""
                return f"trial {row.number} starts{resumed}: {shown}"
            case Progressed():
                row.kimg, row.rate = event.kimg, event.images_per_s
            case Scored():
                row.kimg, row.rung = event.kimg, event.score
                return f"trial {row.number}: {row.kimg:.1f} kimg, rung score {number(row.rung)}"
            case Ended():
                row.state, row.value, row.reason = event.state, event.value, event.reason
                return self._end_line(row)
        return None

    def _end_line(self, row: _Row) -> str:
        score = f", score {scored(row.value)}" if row.value is not None else ""
        why = f" ({row.reason})" if row.reason else ""
        eta = f", {self.time_left}" if self.time_left else ""
        return f"trial {row.number} {row.state}{score}{why}; {self.finished} of {self.target} finished{eta}"

    def render(self) -> RenderableType:
        """The live table."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for name in ("trial", "state", "trained", "", "images/s", "rung score", "score", ""):
            table.add_column(name, justify="left" if name in ("state", "") else "right")
        for row in sorted(self.rows.values(), key=lambda row: row.number)[-20:]:
            best = row is self.best
            running = row.state == "RUNNING"
            table.add_row(
                str(row.number),
                Text(row.state.lower(), style=_STYLES.get(row.state, "")),
                f"{row.kimg:.1f} kimg" if row.kimg else "",
                ProgressBar(total=self.spec.budget.kimg, completed=row.kimg, width=16) if running else "",
                f"{row.rate:,.0f}" if running and row.rate else "",
                "" if row.rung is None else number(row.rung),
                Text("" if row.value is None else scored(row.value), style="bold green" if best else ""),
                "best" if best else row.doing or row.reason[:48],
            )
        best_text = "no score yet"
        if self.best is not None and self.best.value is not None:
            best_text = f"best {scored(self.best.value)} (trial {self.best.number})"
        status = [f"{self.finished} of {self.target} trials finished", best_text]
        status.append(self.time_left or self.doing)
        return Group(Text(f"study {self.spec.name}: ", style="bold") + Text(" · ".join(status)), table)
