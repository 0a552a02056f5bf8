"""What a sweep looks like on a terminal: a live table, or plain lines. Builds text; ``cli`` prints it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.spec.resolved import ResolvedStudy
from harness.store.records import StudyRecord
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

    def update(self, event: Mapping[str, Any]) -> str | None:
        """Take an event in; return a line for a log where it is worth one."""
        if "record" in event:
            self.begin(event["record"], event["target"])
            return None
        if "number" not in event:
            self.doing = str(event.get("doing", self.doing))
            return self.doing if "doing" in event and event["doing"] != "ready" else None
        row = self.rows.setdefault(event["number"], _Row(event["number"]))
        row.kimg = event.get("kimg", row.kimg)
        row.rate = event.get("images_per_s", row.rate)
        row.doing = event.get("doing", "")
        self.doing = "training"
        if "rung" in event:
            row.rung = event["rung"]
            return f"trial {row.number}: {row.kimg:.1f} kimg, rung score {number(row.rung)}"
        if "state" in event:
            if (before := self.rows.get(event.get("retry_of", -1))) and before.state == "RUNNING":
                before.state, before.reason, before.doing = "FAIL", f"continued as trial {row.number}", ""
            row.state, row.value, row.reason = event["state"], event.get("value"), event.get("reason", "")
            return self._state_line(row, event)
        return None

    def _state_line(self, row: _Row, event: Mapping[str, Any]) -> str:
        if row.state == "RUNNING":
            shown = ", ".join(f"{name}={number(value)}" for name, value in event.get("params", {}).items())
            resumed = f", continues at {row.kimg:.1f} kimg" if row.kimg else ""
            return f"trial {row.number} starts{resumed}: {shown}"
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
