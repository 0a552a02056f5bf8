"""Running and joining studies with a view of their progress, and with interruptions that stop at a checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from harness.cli.display import complain, display, images_progress
from harness.cli.live import SweepView
from harness.home import Home
from harness.machine.processes import Machines
from harness.machine.signals import StopSignals, run_interruptibly
from harness.spec.resolved import ResolvedStudy
from harness.sweep.messages import Watcher
from harness.sweep.run import SweepResult, join_sweep, run_sweep


def run(
    spec: ResolvedStudy,
    home: Home,
    *,
    source: Path | None,
    machines: Machines,
    trials: int | None = None,
    exact: bool = False,
    resume_anyway: bool = False,
    progress: bool = True,
    raises: bool = False,
) -> SweepResult:
    """Run or continue a study, as :func:`harness.sweep.run.run_sweep`; an interruption stops it at a checkpoint.

    Raises:
        HarnessError: as of ``run_sweep``.
        KeyboardInterrupt: it was interrupted, and ``raises`` is set or nothing was being trained yet.
    """
    sweep = functools.partial(
        run_sweep, spec, home, source=source, trials=trials, machines=machines, resume_anyway=resume_anyway, exact=exact
    )
    return _watched(spec, sweep, progress, raises)


def join(
    spec: ResolvedStudy, home: Home, *, source: Path | None, machines: Machines, progress: bool = True
) -> SweepResult:
    """Add this machine's workers to a started study, as :func:`harness.sweep.run.join_sweep`."""
    return _watched(spec, functools.partial(join_sweep, spec.name, home, source=source, machines=machines), progress)


def _watched(
    spec: ResolvedStudy, sweep: Callable[..., SweepResult], progress: bool, raises: bool = False
) -> SweepResult:
    view, stop = SweepView(spec), StopSignals(complain)
    with display(view, progress=progress) as show:
        watcher = Watcher(
            on_event=lambda event: show(view.update(event)),
            on_progress=images_progress(show, view, stop),
            stop_level=lambda: stop.level,
        )
        result = run_interruptibly(functools.partial(sweep, watcher=watcher), stop)
    if raises:
        stop.raise_if_interrupted()
    return result
