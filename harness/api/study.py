"""A study, from its file to its report."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import NotFoundError
from harness.gan.hparams import HParams
from harness.home import Home, expanded
from harness.machine.processes import Machines
from harness.spec import files
from harness.spec.files import file_names, spaces_dir
from harness.spec.resolved import ResolvedStudy, with_budget
from harness.spec.study import StudySpec
from harness.text import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from harness.api.generator import Generator
    from harness.findings.headline import Headline
    from harness.store.records import StudyRecord
    from harness.sweep.run import SweepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class BestTrial:
    """The best trial of a study; if it was confirmed, the confirmed best's training with the median seed.

    Attributes:
        study: the study that it belongs to.
        number: of the trial.
        hparams: the configuration that it trained.
        value: its final score; lower is better.
        scores: all final scores by their full names.
        folder: with its curve, sample grids and weights.
        headline: the verdict on the study, see :attr:`Study.headline`.
    """

    study: str
    number: int
    hparams: HParams
    value: float
    scores: Mapping[str, float]
    folder: Path
    headline: Headline

    def generator(self) -> Generator:
        """The trained generator.

        >>> import harness
        >>> harness.Study("tiny").best.generator().sample(2, seed=0).shape
        (2, 16, 16, 1)
        """
        from harness.api.generator import load_generator

        return load_generator(self.folder)


class Study:
    """A search over DCGAN hyperparameters: its file, its trials in the database, its report.

    Args:
        study: the name of a file in ``search_spaces/`` or of a started study, the path of a ``.toml`` file, or a
            StudySpec.
        data: folder or zip of images, if the study's source needs one.
        home: folder of databases, trials and weights; ``HARNESS_HOME`` or ``runs/`` unless given.
        quick: the file's quick budget, as a study of its own, ``STUDY-quick``.
        kimg: length of a full trial in thousands of images, instead of the file's; rungs are scaled with it.
        say: called with notes, such as that MLflow cannot be reached.

    Raises:
        NotFoundError: there is no such study.
        SpecError: its file has mistakes; the message lists all of them.

    >>> import harness
    >>> study = harness.Study("tiny", data="images")
    >>> study.spec.budget.trials
    4

    A study made in Python:

    >>> spec = harness.StudySpec(
    ...     name="mine",
    ...     data={"source": "mnist", "image_size": 32, "channels": 1},
    ...     space={"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
    ...     budget={"trials": 10, "kimg": 20, "rungs": [5]},
    ...     scoring={"final": {"samples": 500, "reference": 5000}, "rung": {"samples": 250, "reference": 1000}},
    ... )
    >>> harness.Study(spec)
    Study('mine')
    """

    def __init__(
        self,
        study: str | Path | StudySpec | ResolvedStudy,
        *,
        data: str | Path | None = None,
        home: str | Path | None = None,
        quick: bool = False,
        kimg: float | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.home = Home.from_environment() if home is None else Home(expanded(Path(home)).resolve())
        if isinstance(study, ResolvedStudy):
            spec = study
        else:
            spec = files.resolve(study) if isinstance(study, StudySpec) else _find(str(study), self.home)
        self.spec = with_budget(spec, quick=quick, trials=None, kimg=kimg)
        self.data = None if data is None else expanded(Path(data))
        self.say = say

    def __repr__(self) -> str:
        return f"Study({self.name!r})"

    @property
    def name(self) -> str:
        return self.spec.name

    def run(
        self,
        trials: int | None = None,
        *,
        workers: int | None = None,
        lanes: int | None = None,
        device: str = "auto",
        exact: bool = False,
        resume_anyway: bool = False,
        progress: bool = True,
        hours: float | None = None,
    ) -> SweepResult:
        """Run or continue the study until its budget or its time is used up.

        Args:
            trials: trials to finish in all; the file's number unless given. A larger number later extends the study.
            workers: processes, which share the cores and never import the calling script; None: as many as are fastest.
            lanes: trials at once in each; None: on a GPU up to 8, as memory allows, else 1.
            device: ``auto``, ``cpu`` or ``cuda``.
            exact: float32 throughout, no faster arithmetic.
            resume_anyway: continue although sampler, pruner, presets, ranges or versions changed.
            progress: show a live table in a terminal or a notebook, lines elsewhere.
            hours: end within this time; the best trials that have started are trained to the end and scored. The
                next call continues.

        Returns:
            How many trials are finished, and how many were wanted.

        Raises:
            HarnessError: images are missing or have changed, the file has changed, workers keep dying.
            KeyboardInterrupt: it was interrupted; trainings are saved, and the next call continues them.

        >>> import harness
        >>> harness.Study("tiny", data="images").run(trials=4, workers=2, device="cpu", progress=False).finished
        4
        """
        machines = Machines(workers=workers, lanes=lanes, device=device)
        asked = {"trials": trials, "exact": exact, "resume_anyway": resume_anyway, "hours": hours}
        return run_and_watch(self.spec, self.home, self.data, machines, progress=progress, raises=True, **asked)

    def confirm(
        self,
        *,
        top: int = 5,
        seeds: int = 5,
        samplings: int = 3,
        workers: int | None = None,
        lanes: int | None = None,
        device: str = "auto",
        progress: bool = True,
    ) -> Study:
        """Train the best configurations again on fresh seeds.

        Args:
            top: number of top configurations; published ones are added.
            seeds: fresh training seeds of each.
            samplings: times that each generator is scored.
            workers: processes, which share the cores; None: as many as are fastest here.
            lanes: as in :meth:`run`.
            device: ``auto``, ``cpu`` or ``cuda``.
            progress: as in :meth:`run`.

        Returns:
            The study of these trainings, ``STUDY-confirm``. ``best`` and ``report`` of this study use it from now on.

        >>> import harness
        >>> study = harness.Study("tiny", data="images")
        >>> study.confirm(top=1, seeds=2, samplings=1, device="cpu", progress=False)
        Study('tiny-confirm')
        """
        spec = confirm_spec(self.name, self.home, top=top, seeds=seeds, samplings=samplings)
        machines = Machines(workers=workers, lanes=lanes, device=device)
        run_and_watch(spec, self.home, self.data, machines, progress=progress, raises=True)
        return Study(spec, data=self.data, home=self.home.root, say=self.say)

    def record(self) -> StudyRecord:
        """The study and its trials as plain values.

        Raises:
            NotFoundError: it was not started.
        """
        from harness.store.studies import started_study, study_to_record

        return study_to_record(started_study(self.name, self.home))

    def trials_dataframe(self) -> pd.DataFrame:
        """One row for each started trial.

        Columns: number, state, a column for each parameter, ``rung_3kimg`` for the score at 3 kimg, value, each final
        score by its full name, updates (of the generator, of a finished trial), seconds, protocol, reason.

        >>> import harness
        >>> frame = harness.Study("tiny").trials_dataframe()
        >>> list(frame.columns[:2]), "rung_0.1kimg" in frame, "batch_size" in frame
        (['number', 'state'], True, True)
        """
        from harness.findings.ranking import trials_dataframe

        return trials_dataframe(self.record())

    @property
    def best(self) -> BestTrial:
        """The best trial; of a confirmed study, the confirmed best.

        Raises:
            NotFoundError: no trial is finished.

        >>> import harness
        >>> best = harness.Study("tiny").best
        >>> best.hparams.image_size, best.value in best.scores.values()
        (16, True)
        """
        from harness.api.generator import best_trial

        trial = best_trial(self.record(), self.home, self.say)
        study = f"{self.name}-confirm" if trial.attrs.arm else self.name
        return BestTrial(
            study=study,
            number=trial.number,
            hparams=HParams.from_stored(trial.attrs.hparams, f"trial {trial.number} of {study}"),
            value=float(trial.value if trial.value is not None else "nan"),
            scores=trial.attrs.scores,
            folder=self.home.root / trial.attrs.folder,
            headline=self.headline,
        )

    @property
    def headline(self) -> Headline:
        """The verdict on the study: ``kind``, ``text``, ``reason`` and the command that comes ``next``.

        Raises:
            NotFoundError: it was not started.

        >>> import harness
        >>> harness.Study("tiny").headline.kind in ("collapsed", "too short")
        True
        """
        from harness.api.reports import study_headline

        return study_headline(self.name, self.home)

    def report(self) -> Path:
        """Write ``reports/STUDY/report.md`` in the current folder, with figures and ``best.toml``; return its path.

        >>> import harness
        >>> print(harness.Study("tiny").report())
        reports/tiny/report.md
        """
        from harness.api.reports import write_report

        return write_report(self.name, self.home, self.say)


def run_and_watch(
    spec: ResolvedStudy, home: Home, data: Path | None, machines: Machines, *, progress: bool = True,
    raises: bool = False, **asked: Any,
) -> SweepResult:  # fmt: skip
    """Run a study with the live view; ``raises`` is :func:`watch`'s, ``asked`` more arguments of ``run_sweep``."""
    from harness.cli.live import watch
    from harness.sweep.run import run_sweep

    work = functools.partial(run_sweep, spec, home, source=data, machines=machines, **asked)
    return watch(spec, work, progress=progress, raises=raises, hours=asked.get("hours"))


def confirm_spec(name: str, home: Home, *, top: int, seeds: int, samplings: int) -> ResolvedStudy:
    """The fixed study that confirms a started one."""
    from harness.findings import fixed_studies
    from harness.store.studies import started_study, stored_content, stored_spec, study_to_record

    study, known = started_study(name, home), stored_content(f"{name}-confirm", home)
    return fixed_studies.confirm_spec(
        stored_spec(study), study_to_record(study), top=top, seeds=seeds, samplings=samplings, known=known
    )


def _find(name: str, home: Home) -> ResolvedStudy:
    """The study file of this name, or a started study without a file."""
    if name.endswith(".toml") or name.removesuffix("-quick") in file_names("study"):
        return files.load_study_file(name)
    from harness.store.records import StudyAttrs
    from harness.store.studies import find_study, started_studies, stored_spec

    if (started := find_study(name, home)) is not None and StudyAttrs.parse(started.user_attrs).target:
        return stored_spec(started)
    known = sorted({*file_names("study"), *started_studies(home)})
    raise NotFoundError(
        f"no study {name!r} in {spaces_dir()}/, and none was started in {home.root}{did_you_mean(name, known)}",
        f"There are: {', '.join(known) or 'none'}.",
    )
