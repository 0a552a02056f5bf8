"""The study's run in MLflow, above those of its trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import optuna

from harness.errors import StorageLost, TrackingError, without_secrets
from harness.home import Home
from harness.spec.resolved import ResolvedStudy
from harness.store.database import write_study_attrs
from harness.store.records import StudyAttrs, TrialAttrs
from harness.store.trials import Trials, finished_count
from harness.sweep.reconcile import reconcile_tracker
from harness.tracking.journals import adopt_journals
from harness.tracking.mlflow import MlflowTracker, answers, client_for, new_client, open_experiment
from harness.training.record import RunInfo


class ParentRun:
    """The run that a sweep opens, heals and closes. MLflow may be away once it is known."""

    def __init__(self, tracker: MlflowTracker, run_id: str, home: Home, say: Callable[[str], None]) -> None:
        self.tracker, self.run_id, self.home, self.say = tracker, run_id, home, say
        self.children = MlflowTracker(tracker.client, tracker.experiment_id, run_id)

    @classmethod
    def open(
        cls, study: optuna.Study, spec: ResolvedStudy, home: Home, tags: dict[str, str], say: Callable[[str], None]
    ) -> ParentRun:
        """Open or create experiment and run.

        Raises:
            TrackingError: MLflow does not answer, and the study never had a run.
        """
        try:
            client = client_for(home)
            info = RunInfo(
                key=f"{spec.name}/sweep/{StudyAttrs.parse(study.user_attrs).uid}",
                name=f"sweep {spec.name}",
                experiment=spec.name,
                params={},
                tags={**tags, "role": "sweep"},
            )
            with answers(home):
                tracker = MlflowTracker(client, open_experiment(client, home, spec.name, spec.description))
                return cls(tracker, tracker.start(info), home, say)
        except TrackingError as error:
            if not StudyAttrs.parse(study.user_attrs).mlflow_parent:
                raise
            say(f"{error.problem}; the sweep continues, and MLflow gets everything when it is back")
            return cls.known(study, spec, home, say)

    @classmethod
    def known(cls, study: optuna.Study, spec: ResolvedStudy, home: Home, say: Callable[[str], None]) -> ParentRun:
        """Of a study that was started before; MLflow is not asked."""
        attrs = StudyAttrs.parse(study.user_attrs)
        return cls(MlflowTracker(new_client(home), attrs.mlflow_experiment), attrs.mlflow_parent, home, say)

    def note(self, study: optuna.Study) -> None:
        """Write down where the study's runs are."""
        where = StudyAttrs(mlflow_parent=self.run_id, mlflow_experiment=self.tracker.experiment_id)
        write_study_attrs(study, where)

    def heal(self, trials: Trials, *, crashed: bool) -> None:
        """Heal the database, then MLflow as far as it answers."""
        for line in trials.heal(crashed=crashed):
            self.say(line)
        for line in adopt_journals(self.home):
            self.say(line)
        try:
            for line in reconcile_tracker(trials.study, self.children, self.home):
                self.say(line)
        except StorageLost:
            raise
        except Exception as error:  # whatever the tracking library raises: the next start heals it
            self._away(error)

    def end(self, study: optuna.Study, target: int) -> None:
        """Close the run, with the best score."""
        ended = finished_count(study)
        try:
            # As a step: MLflow shows the last one's, also where more trials were asked for since.
            self.tracker.end(
                self.run_id,
                "COMPLETE" if ended >= target else "FAIL",
                scores=_summary(study) if ended >= target else {},
                tags={},
                step=ended,
            )
        except Exception as error:
            self._away(error)

    def _away(self, error: Exception) -> None:
        lines = str(error).strip().splitlines() or [""]
        self.say(
            f"MLflow does not answer ({type(error).__name__}: {without_secrets(lines[0])[:120]}); "
            "`harness reconcile` makes it agree"
        )


def _summary(study: optuna.Study) -> dict[str, float]:
    done = [t for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE and t.values]
    if not done:
        return {}
    # Only scores of one protocol can be compared: that of most trials, as in the report.
    hashes = [TrialAttrs.parse(trial.user_attrs).protocol_hash for trial in done]
    (chosen, _), *_ = Counter(reversed(hashes)).most_common(1)
    best = min(float(trial.values[0]) for trial, own in zip(done, hashes, strict=True) if own == chosen)
    return {f"best_{StudyAttrs.parse(study.user_attrs).final_metric}": best, "trials_complete": float(len(done))}
