"""Printing, live displays and stop signals."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

DEFAULT_STUDY = "mnist32"
# As a shell has them for SIGINT and SIGPIPE.
INTERRUPTED, PIPE_CLOSED = 130, 141
# Without a terminal a long training prints a line this often (seconds).
_LINE_EVERY_S = 5.0


def env(name: str, default: str) -> str:
    return os.environ.get(name) or default


def say(text: str) -> None:
    print(text, flush=True)


class StopSignals:
    """Ctrl-C (or SIGTERM) once: stop at the next snapshot; twice: stop at once."""

    def __init__(self, *, raise_at_two: bool = False) -> None:
        self.level = 0
        self._raise_at_two = raise_at_two

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self._before:
            signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, *_: object) -> None:
        self.level += 1
        text = "stopping at the next snapshot; Ctrl-C again stops at once" if self.level == 1 else "stopping at once"
        print(f"\n{text}", file=sys.stderr, flush=True)
        if self.level >= 2 and self._raise_at_two:
            raise KeyboardInterrupt


def _say_if_heard(line: str | None) -> None:
    """A sweep does not end because nobody listens any more, as where ``| tee log`` was killed."""
    if line:
        with suppress(BrokenPipeError):
            say(line)


class display:  # noqa: N801 - used like a function
    """A live table on a terminal, plain lines elsewhere."""

    def __init__(self, view: Any) -> None:
        self.view = view
        self.live: Any = None

    def __enter__(self) -> Callable[[str | None], None]:
        if not sys.stdout.isatty():
            return _say_if_heard
        from rich.live import Live

        self.live = Live(get_renderable=self.view.render, refresh_per_second=4, transient=False)
        self.live.__enter__()
        return lambda line: None

    def __exit__(self, *exception: Any) -> None:
        if self.live:
            self.live.__exit__(*exception)


def file_progress(show: Callable[[str | None], None], view: Any, stop: StopSignals) -> Callable[[int, int], None]:
    def on_progress(done: int, total: int) -> None:
        if stop.level:  # nothing is trained yet; the half-made store is removed
            raise KeyboardInterrupt
        view.doing = f"preparing images: {done:,} of {total:,}"
        if done == total or done % 2000 == 0:
            show(view.doing)

    return on_progress


class TrainingProgress:
    """A progress bar on a terminal, plain lines elsewhere; for one training, or for preparing images."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._line_at = 0.0

    def __enter__(self) -> TrainingProgress:
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

    def say(self, text: str) -> None:
        """A line, above the bar where there is one."""
        if self.bar:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            say(text)

    def images(self, done: int, total: int) -> None:
        """So many images are prepared."""
        if self.bar:
            self._advance("images", done, total, f"{done:,} of {total:,}")
        elif done == total or done % 10_000 == 0:
            say(f"preparing images: {done:,} of {total:,}")

    def progress(self, event: Any, kimg: float) -> None:
        """A training has come so far."""
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


def or_stop(stop: StopSignals, show: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Preparing images ends at the first Ctrl-C: nothing is trained yet, and the half-made store is removed."""

    def on_images(done: int, total: int) -> None:
        if stop.level:
            raise KeyboardInterrupt
        show(done, total)

    return on_images
