"""A sweep as a person sees it: a live table in a terminal or a notebook, lines elsewhere."""

from __future__ import annotations

import functools
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.cli.display import complain, say, visible
from harness.machine.signals import StopSignals, in_notebook, run_interruptibly
from harness.spec.resolved import ResolvedStudy
from harness.sweep import messages
from harness.sweep.run import SweepResult
from harness.text import duration, number, scored

# A notebook's table is drawn this often (seconds).
_DRAW_EVERY_S = 0.5
_DONE = ("COMPLETE", "PRUNED")
_STYLES = {"COMPLETE": "green", "PRUNED": "dim", "FAIL": "red", "RUNNING": "bold"}
_WORDS = {"WAITING": "paused"}

Show = Callable[[str | None], None]


def watch(
    spec: ResolvedStudy, sweep: Callable[..., SweepResult], *, progress: bool = True, raises: bool = False
) -> SweepResult:
    """Run ``run_sweep`` or ``join_sweep``, given with its arguments; an interruption stops it at a checkpoint.

    That is a KeyboardInterrupt where this ``raises``, or while nothing is trained yet.
    """
    view, stop = SweepView(spec), StopSignals(complain)
    with display(view, progress=progress) as show:

        def on_progress(done: int, total: int) -> None:
            stop.raise_if_interrupted()  # the half-made store is removed
            view.doing = f"preparing images: {done:,} of {total:,}"
            if done == total or done % 2000 == 0:
                show(view.doing)

        watcher = messages.Watcher(
            on_event=lambda event: show(view.update(event)),
            on_progress=on_progress,
            stop_level=lambda: stop.level,
        )
        result = run_interruptibly(functools.partial(sweep, watcher=watcher), stop)
    if raises:
        stop.raise_if_interrupted()
    return result


@contextmanager
def display(view: SweepView, *, progress: bool = True) -> Iterator[Show]:
    """What shows the view, and lines of its log; nothing without ``progress``."""
    if not progress:
        yield lambda line: None
    elif in_notebook():
        with _notebook_table(view) as show:
            yield show
    elif sys.stdout.isatty():
        from rich.live import Live

        with Live(get_renderable=view.render, refresh_per_second=4, transient=False):
            yield lambda line: None
    else:
        yield _say_if_heard


def _say_if_heard(line: str | None) -> None:
    """A sweep does not end because its reader is gone, as where ``| tee log`` was killed."""
    if line:
        with suppress(BrokenPipeError):
            say(line)


@contextmanager
def _notebook_table(view: SweepView) -> Iterator[Show]:
    """The live table as one output of a notebook's cell, drawn again in place."""
    from IPython.display import HTML
    from IPython.display import display as show_output

    def html() -> HTML:
        console = Console(record=True, width=120, file=io.StringIO(), force_jupyter=False)
        console.print(view.render())
        return HTML(console.export_html(inline_styles=True, code_format="<pre>{code}</pre>"))  # type: ignore[no-untyped-call]

    output, drawn_at = show_output(html(), display_id=True), 0.0  # type: ignore[no-untyped-call]

    def draw(line: str | None) -> None:
        nonlocal drawn_at
        if time.monotonic() - drawn_at >= _DRAW_EVERY_S:
            drawn_at = time.monotonic()
            output.update(html())

    yield draw
    output.update(html())


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
    """The state of a sweep as a person sees it; fed with the workers' messages."""

    spec: ResolvedStudy
    rows: dict[int, _Row] = field(default_factory=dict)
    target: int = 0
    doing: str = "starting"
    started: float = field(default_factory=time.monotonic)
    finished_before: int = 0
    trained_before: float = 0.0

    @property
    def finished(self) -> int:
        return sum(row.state in _DONE for row in self.rows.values())

    @property
    def trained_kimg(self) -> float:
        return sum(row.kimg for row in self.rows.values() if row.state != "FAIL")

    @property
    def status(self) -> str:
        if not self.spec.promotions:
            return f"{self.finished} of {self.target} trials finished"
        tried = sum(row.state in (*_DONE, "WAITING") for row in self.rows.values())
        complete = sum(row.state == "COMPLETE" for row in self.rows.values())
        return f"{tried} of {self.target} trials tried, {complete} trained to the end"

    @property
    def best(self) -> _Row | None:
        done = [row for row in self.rows.values() if row.state == "COMPLETE" and row.value is not None]
        return min(done, key=lambda row: row.value or 0.0, default=None)

    @property
    def time_left(self) -> str:
        """From the pace of this call's trials, running ones as half done; empty before the first has finished.

        A bound while only presets, which are seldom pruned, have finished. With promotion from the images trained, of
        those that the study is expected to train.
        """
        if self.spec.promotions:
            fresh_kimg, left_kimg = self.trained_kimg - self.trained_before, self.spec.expected_kimg(self.target)
            left_kimg -= self.trained_kimg
            pace = (time.monotonic() - self.started) / fresh_kimg if fresh_kimg else 0.0
            return f"about {duration(pace * left_kimg)} left" if pace and left_kimg > 0 else ""
        fresh = self.finished - self.finished_before
        running = sum(row.state == "RUNNING" for row in self.rows.values()) / 2
        pace = (time.monotonic() - self.started) / (fresh + running) if fresh else 0.0
        left = pace * max(0.0, self.target - self.finished - running)
        if not left:
            return ""
        presets = range(len(self.spec.presets) if self.spec.pruner.name != "none" else 0)
        searched = any(row.number not in presets and row.state in _DONE for row in self.rows.values())
        return f"{'about' if searched or not presets else 'at most'} {duration(left)} left"

    def update(self, event: messages.Event) -> str | None:
        """Take an event in; return a line for a log where it deserves one."""
        match event:
            case messages.Opened():
                self.target = event.target
                for trial in event.record.trials:  # an earlier call finished these
                    if trial.shown_state in (*_DONE, "FAIL", "PAUSED"):
                        value = trial.value if trial.state == "COMPLETE" else None
                        rung = max(trial.intermediate, default=0) / 1000
                        kimg = self.spec.budget.kimg if trial.state == "COMPLETE" else rung
                        self.rows[trial.number] = _Row(
                            trial.number, trial.state, kimg, value=value, reason=trial.reason
                        )
                self.finished_before, self.started = self.finished, time.monotonic()
                self.trained_before = self.trained_kimg
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
        row.doing = "scoring" if isinstance(event, messages.Scoring) else ""
        match event:
            case messages.Started():
                before = None if event.retry_of is None else self.rows.get(event.retry_of)
                if before and before.state == "RUNNING":
                    before.state, before.reason, before.doing = "FAIL", f"continued as trial {row.number}", ""
                row.state, row.kimg, row.value, row.reason = "RUNNING", event.kimg, None, ""
                shown = ", ".join(f"{name}={number(value)}" for name, value in event.params.items())
                resumed = f", continues at {row.kimg:.1f} kimg" if row.kimg else ""
                return f"trial {row.number} starts{resumed}: {shown}"
            case messages.Progressed():
                row.kimg, row.rate = event.kimg, event.images_per_s
            case messages.Scored():
                row.kimg, row.rung = event.kimg, event.score
                return f"trial {row.number}: {row.kimg:.1f} kimg, rung score {number(row.rung)}"
            case messages.Ended():
                row.state, row.value, row.reason = event.state, event.value, event.reason
                score = f", score {scored(row.value)}" if row.value is not None else ""
                why = f" ({row.reason})" if row.reason else ""
                ended = f"{row.state}{score}{why}" if row.state != "WAITING" else row.reason
                eta = f", {self.time_left}" if self.time_left else ""
                return f"trial {row.number} {ended}; {self.status.replace(' trials', '', 1)}{eta}"
        return None

    def render(self) -> RenderableType:
        """The live table."""
        best = self.best
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for name in ("trial", "state", "trained", "", "images/s", "rung score", "score", ""):
            table.add_column(name, justify="left" if name in ("state", "") else "right")
        for row in sorted(self.rows.values(), key=lambda row: row.number)[-20:]:
            running = row.state == "RUNNING"
            table.add_row(
                str(row.number),
                Text(_WORDS.get(row.state, row.state.lower()), style=_STYLES.get(row.state, "")),
                f"{row.kimg:.1f} kimg" if row.kimg else "",
                ProgressBar(total=self.spec.budget.kimg, completed=row.kimg, width=16) if running else "",
                f"{row.rate:,.0f}" if running and row.rate else "",
                "" if row.rung is None else number(row.rung),
                Text("" if row.value is None else scored(row.value), style="bold green" if row is best else ""),
                "best" if row is best else Text(visible(row.doing or row.reason[:48])),
            )
        status = [
            self.status,
            f"best {scored(best.value)} (trial {best.number})" if best and best.value is not None else "no score yet",
            self.time_left or visible(self.doing),
        ]
        return Group(Text(f"study {self.spec.name}: ", style="bold") + Text(" · ".join(status)), table)
