"""Printing: lines, and the progress of one training or of images being prepared."""

from __future__ import annotations

import select
import sys
import time
from typing import Any
from unicodedata import category

from harness.errors import without_secrets
from harness.machine.signals import StopSignals

# Unicode's control characters, invisible ones (which turn text around), lone surrogates and separators of lines.
_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Without a terminal a long training prints a line this often (seconds).
_LINE_EVERY_S = 5.0
# The task of which only its beginning is known.
_WORKING = "working"


def visible(text: str) -> str:
    """A text without what a terminal would obey, such as a description's escape sequences, or could not encode."""
    return "".join(
        char.encode("unicode_escape").decode() if category(char) in _OBEYED and char not in "\n\t" else char
        for char in text
    )


def say(text: str) -> None:
    print(visible(text), flush=True)


def complain(text: str) -> None:
    print(visible(without_secrets(text)), file=sys.stderr, flush=True)


def objects(question: str, seconds: float) -> bool:
    """Whether a person at a terminal says no within this time; without a terminal it does not ask or wait."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    say(question)
    heard, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(heard) and sys.stdin.readline().strip().lower().startswith("n")


class TrainingProgress:
    """A progress bar on a terminal, plain lines elsewhere. Ctrl-C is counted in ``stop``."""

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
            self.bar.console.print(visible(text), markup=False, highlight=False)
            if _WORKING not in self._tasks:
                self._tasks[_WORKING] = self.bar.add_task(_WORKING, total=None, shown="")
            self.bar.reset(self._tasks[_WORKING], visible=True)
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
        if _WORKING in self._tasks:  # on what was said last, which is over
            self.bar.update(self._tasks[_WORKING], visible=False)
        if name not in self._tasks:
            self._tasks[name] = self.bar.add_task(name, total=total, shown="")
        self.bar.update(self._tasks[name], completed=done, total=total, shown=shown)
