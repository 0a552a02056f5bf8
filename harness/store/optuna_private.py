"""Everything that Optuna 5.0 keeps private and this package needs; tests/contract/test_optuna_private.py says why."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import optuna
from optuna.pruners import HyperbandPruner
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb.models import TrialModel, TrialUserAttributeModel
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import select

# Successive halving's note on a rung, which its number follows.
_RUNG = "completed_rung_"
# Methods of RDBStorage that Optuna's cache calls instead of their public counterparts.
CALLED_BY_CACHE = ("_get_trials", "_set_trial_param")


def cached_storage(study: optuna.Study) -> BaseStorage:
    """The study's storage; of a database, Optuna's cache of it."""
    return study._storage


def uncached_storage(study: optuna.Study) -> BaseStorage:
    """The study's storage beneath Optuna's cache."""
    storage: BaseStorage = getattr(study._storage, "_backend", study._storage)
    return storage


def id_of(trial: optuna.Trial | FrozenTrial) -> int:
    """The storage's id of the trial, unique among all studies."""
    return trial._trial_id


def show_attrs(trial: optuna.Trial, user_attrs: Mapping[str, Any]) -> None:
    """Make a trial object show attributes that were written directly to the storage."""
    trial._cached_frozen_trial.user_attrs.update(user_attrs)


def stale_trial_ids(storage: RDBStorage, study_id: int) -> set[int]:
    """RUNNING trials with a heartbeat, but none within the storage's ``grace_period``, by the database's clock."""
    return set(storage._get_stale_trial_ids(study_id))


def set_trial_user_attrs(storage: RDBStorage, trial_id: int, user_attrs: Mapping[str, Any]) -> None:
    """Write several attributes in one transaction; an UpdateFinishedTrialError if the trial has ended."""
    with _create_scoped_session(storage.scoped_session, True) as session:
        for name, value in user_attrs.items():
            storage._set_trial_attr_without_commit(session, TrialUserAttributeModel, trial_id, name, value)


def trial_state(storage: RDBStorage, trial_id: int) -> TrialState:
    """A trial's state alone, four times as fast as reading the trial; a KeyError if there is no such trial."""
    with storage.engine.connect() as connection:
        query = select(TrialModel.state).where(TrialModel.trial_id == trial_id)
        state: TrialState | None = connection.execute(query).scalar_one_or_none()
    if state is None:
        raise KeyError(f"there is no trial with the id {trial_id}")
    return state


def retry_chain(trial: FrozenTrial) -> list[int]:
    """Numbers of the trials that this one continues, oldest first."""
    return list(trial.system_attrs.get("retry_history", []))


def retry_notes(trial: FrozenTrial, *, undecided: bool) -> dict[str, Any]:
    """System attributes of a trial that continues this ended one: its own, with Optuna's chain of retries.

    ``undecided``: it ended after its newest score, before the pruner's verdict. Successive halving's note on that rung
    is left out then, because it would count as a verdict.
    """
    score = trial.intermediate_values[trial.last_step] if undecided and trial.last_step is not None else None
    own = {
        name: value
        for name, value in trial.system_attrs.items()
        if not (undecided and name.startswith(_RUNG) and value == score)
    }
    return {"failed_trial": trial.number, **own, "retry_history": [*retry_chain(trial), trial.number]}


def halving_bar(trials: Iterable[FrozenTrial], trial: FrozenTrial, factor: int) -> float | None:
    """The worst score that continues, by successive halving, at the last rung where this trial was judged.

    Of n trials scored there the best ⌊n / factor⌋ continue, at least one; None if the trial was judged at no rung.
    """
    judged = [name for name in trial.system_attrs if name.startswith(_RUNG)]
    last = max(judged, key=lambda name: int(name.removeprefix(_RUNG)), default="")
    values = sorted(other.system_attrs[last] for other in trials if last in other.system_attrs)
    return values[max(1, len(values) // factor) - 1] if values else None


class StudyView(optuna.Study):
    """A study whose samplers and pruners see the trials that :meth:`visible_trials` returns."""

    is_member: Callable[[FrozenTrial], bool] | None = None  # which of them get_trials returns; None is all

    def __init__(self, study: optuna.Study, **parts: Any) -> None:
        super().__init__(study.study_name, study._storage, **parts)

    def visible_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        """The study's own trials; a subclass changes them."""
        return super()._get_trials(deepcopy, states, use_cache)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return self.visible_trials(deepcopy, states, use_cache)

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        trials = super().get_trials(deepcopy, states)
        return trials if self.is_member is None else [trial for trial in trials if self.is_member(trial)]


class HyperbandOfView(HyperbandPruner):
    """Hyperband with the trials of a :class:`StudyView` in its brackets; Optuna's also counts earlier attempts."""

    def _create_bracket_study(self, study: optuna.Study, bracket_id: int) -> optuna.Study:
        bracket = copy.copy(study)
        assert isinstance(bracket, StudyView)
        bracket.is_member = lambda trial: self._get_bracket_id(study, trial) == bracket_id
        return bracket

    def rivals(self, study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
        """The trials of its bracket."""
        if not self._pruners:
            self._try_initialization(study)
        return self._create_bracket_study(study, self._get_bracket_id(study, trial)).get_trials(deepcopy=False)

    def first_rung(self, study: optuna.Study, number: int) -> int:
        """Images after which the trial of this number is first judged: the start of its bracket."""
        if not self._pruners:
            self._try_initialization(study)
        trial = create_trial(state=TrialState.RUNNING)
        trial.number = number
        return int(self._min_resource * self._reduction_factor ** self._get_bracket_id(study, trial))
