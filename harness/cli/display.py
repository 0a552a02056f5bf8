"""Printing: lines, and the progress of one training or of images being prepared."""

from __future__ import annotations

import re
import select
import shlex
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, TextIO
from unicodedata import category

from harness.errors import without_secrets
from harness.machine.signals import StopSignals

# Unicode's control characters, invisible ones (which turn text around), lone surrogates and separators of lines.
_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")
# How the line with the next command begins.
NEXT = "next: "
# Columns that are left for a table's last one, at least; with fewer, it continues at the line's beginning.
_NARROWEST = 24
# Without a terminal a long training prints a line this often (seconds).
_LINE_EVERY_S = 5.0
# Columns of a terminal that shows the losses as well: with 80 of them the bar and the time left would have no room.
_WIDE = 130
# What takes seconds on a fast machine, and longer on others.
LOADING = "loading PyTorch"
# The progress bar of work whose length is unknown.
_WORKING = "working"


def visible(text: str) -> str:
    """A text without what a terminal would obey, such as escape sequences, or could not encode."""
    return "".join(
        char.encode("unicode_escape").decode() if category(char) in _OBEYED and char not in "\n\t" else char
        for char in text
    )


def say(text: str) -> None:
    _print(text, sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    lines = visible(text).split("\n")
    print("\n".join(map(_between_words, lines) if stream.isatty() else lines), file=stream, flush=True)


def _between_words(line: str) -> str:
    """A line for a terminal, broken between words. The next command stays whole, for it is copied."""
    width = shutil.get_terminal_size().columns
    if len(line) <= width or line.startswith(NEXT):
        return line
    last_column = max((gap.end() for gap in re.finditer(r"(?:^|\S) {2,}", line[: width - _NARROWEST])), default=0)
    return textwrap.fill(
        line, width, subsequent_indent=" " * last_column, break_long_words=False, break_on_hyphens=False
    )


def command(text: str, data: Path | None = None) -> str:
    """A command of the harness so that it can be pasted: where its program is, and what ``PATH`` stands for."""
    program = Path(sys.prefix) / "bin" / "harness"
    if program.is_file() and program.is_relative_to(Path.cwd()) and shutil.which("harness") != str(program):
        text = re.sub(r"\bharness(?= )", f"{program.relative_to(Path.cwd())}", text)
    return text if data is None else text.replace("--data PATH", f"--data {shlex.quote(str(data))}")


def at_terminal(text: str) -> None:
    """Say what takes a while to who waits for it; a script gets the result alone."""
    if sys.stdout.isatty():
        say(text)


def complain(text: str) -> None:
    _print(without_secrets(text), sys.stderr)


def objects(question: str, seconds: float) -> bool:
    """Whether a person at a terminal says no within this time; without a terminal nobody is asked."""
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
                TextColumn("{task.description}"),
                BarColumn(bar_width=12),
                TextColumn("{task.fields[shown]}"),
                TimeRemainingColumn(),
            )
            self.bar.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.bar:
            self.bar.__exit__(*exception)
        self.stop.__exit__()

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.bar:
            self.bar.console.print(visible(text), markup=False, highlight=False)
            if _WORKING not in self._tasks:
                self._tasks[_WORKING] = self.bar.add_task(_WORKING, total=None, shown="")
            self.bar.reset(self._tasks[_WORKING], visible=True)
        else:
            say(text)

    def images(self, done: int, total: int) -> None:
        """Show images being prepared; the first Ctrl-C ends that, and the half-made store is removed."""
        self.stop.raise_if_interrupted()
        if self.bar:
            self._advance("images", done, total, f"{done:,} of {total:,}")
        elif done == total or done % 10_000 == 0:
            say(f"preparing images: {done:,} of {total:,}")

    def progress(self, event: Any, kimg: float) -> None:
        """Show the progress of a training of ``kimg``."""
        curve = ", ".join(f"{name} {event.curve[name]:.3f}" for name in ("loss_d", "loss_g"))
        if self.bar:
            shown = f"{event.kimg:,.1f} of {kimg:,.1f} kimg  {event.images_per_s:,.0f} images/s"
            if self.bar.console.width >= _WIDE:
                shown += f"  {curve}"
            self._advance(self.label, event.kimg, kimg, shown)
        elif time.monotonic() - self._line_at >= _LINE_EVERY_S or event.kimg >= kimg:
            self._line_at = time.monotonic()
            say(f"{event.kimg:8.1f} kimg  {curve}  {event.images_per_s:,.0f} images/s")

    def _advance(self, name: str, done: float, total: float, shown: str) -> None:
        if _WORKING in self._tasks:  # the work announced last is done
            self.bar.update(self._tasks[_WORKING], visible=False)
        if name not in self._tasks:
            self._tasks[name] = self.bar.add_task(name, total=total, shown="")
        self.bar.update(self._tasks[name], completed=done, total=total, shown=shown)
