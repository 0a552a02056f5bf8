"""Printing: lines, live tables, progress bars."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from harness.machine.signals import StopSignals, in_notebook

# Without a terminal a long training prints a line this often (seconds).
_LINE_EVERY_S = 5.0
# A notebook's table is drawn this often (seconds).
_DRAW_EVERY_S = 0.5

Show = Callable[[str | None], None]


def say(text: str) -> None:
    print(text, flush=True)


def complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say_if_heard(line: str | None) -> None:
    """A sweep does not end because its reader is gone, as where ``| tee log`` was killed."""
    if line:
        with suppress(BrokenPipeError):
            say(line)


@contextmanager
def display(view: Any, *, progress: bool = True) -> Iterator[Show]:
    """A live table in a terminal or a notebook, lines elsewhere; nothing without ``progress``."""
    if not progress:
        yield lambda line: None
    elif in_notebook():
        table = _NotebookTable(view)
        yield table.draw
        table.draw(None, now=True)
    elif sys.stdout.isatty():
        from rich.live import Live

        with Live(get_renderable=view.render, refresh_per_second=4, transient=False):
            yield lambda line: None
    else:
        yield _say_if_heard


class _NotebookTable:
    """The live table as one output of a notebook's cell, drawn again in place."""

    def __init__(self, view: Any) -> None:
        from IPython import display

        self.view, self._drawn_at = view, 0.0
        self._output: Any = display.display(self._html(), display_id=True)  # type: ignore[no-untyped-call]

    def draw(self, line: str | None, *, now: bool = False) -> None:
        if now or time.monotonic() - self._drawn_at >= _DRAW_EVERY_S:
            self._drawn_at = time.monotonic()
            self._output.update(self._html())

    def _html(self) -> Any:
        from IPython import display
        from rich.console import Console

        console = Console(record=True, width=120, file=io.StringIO(), force_jupyter=False)
        console.print(self.view.render())
        html = console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
        return display.HTML(html)  # type: ignore[no-untyped-call]


def images_progress(show: Show, view: Any, stop: StopSignals) -> Callable[[int, int], None]:
    """Shows images being prepared, which ends at the first Ctrl-C: the half-made store is removed."""

    def on_images(done: int, total: int) -> None:
        stop.raise_if_interrupted()
        view.doing = f"preparing images: {done:,} of {total:,}"
        if done == total or done % 2000 == 0:
            show(view.doing)

    return on_images


class TrainingProgress:
    """A progress bar on a terminal, plain lines elsewhere; for one training, or for preparing images.

    Ctrl-C is counted in ``stop``.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: Any = None
        self.stop = StopSignals(complain, raise_at_two=True)
        self._tasks: dict[str, Any] = {}
        self._line_at = 0.0

    def __enter__(self) -> TrainingProgress:
        self.stop.__enter__()
        if sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[shown]}"), TimeRemainingColumn()
            )
            self.bar.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.bar:
            self.bar.__exit__(*exception)
        self.stop.__exit__()

    def say(self, text: str) -> None:
        """A line, above the bar where there is one."""
        if self.bar:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            say(text)

    def images(self, done: int, total: int) -> None:
        """Shows images being prepared, which ends at the first Ctrl-C: the half-made store is removed."""
        self.stop.raise_if_interrupted()
        if self.bar:
            self._advance("images", done, total, f"{done:,} of {total:,}")
        elif done == total or done % 10_000 == 0:
            say(f"preparing images: {done:,} of {total:,}")

    def progress(self, event: Any, kimg: float) -> None:
        """Shows how far a training of ``kimg`` has come."""
        curve = ", ".join(f"{name} {event.curve[name]:.3f}" for name in ("loss_d", "loss_g"))
        if self.bar:
            shown = f"{event.kimg:,.1f} of {kimg:,.1f} kimg  {curve}  {event.images_per_s:,.0f} images/s"
            self._advance(self.label, event.kimg, kimg, shown)
        elif time.monotonic() - self._line_at >= _LINE_EVERY_S or event.kimg >= kimg:
            self._line_at = time.monotonic()
            say(f"{event.kimg:8.1f} kimg  {curve}  {event.images_per_s:,.0f} images/s")

    def _advance(self, name: str, done: float, total: float, shown: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self.bar.add_task(name, total=total, shown="")
        self.bar.update(self._tasks[name], completed=done, total=total, shown=shown)
