"""What each use of a private name of Optuna relies on, and which public way is missing.

Where one of these fails under a newer Optuna, ``harness/store/optuna_private.py`` is what has to change.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.pruners import BasePruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import text

from harness.store import optuna_private as private
from harness.store.optuna_private import HyperbandOfView, StudyView

ROOT = Path(__file__).resolve().parents[2]
OWNER = ROOT / "harness/store/optuna_private.py"


@pytest.fixture
def storage(tmp_path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{tmp_path / 'optuna.db'}")


@pytest.fixture
def study(storage) -> optuna.Study:
    return optuna.create_study(study_name="tiny", storage=storage)


def test_a_study_has_a_cache_over_the_storage_that_it_was_given(study, storage):
    """Missing: Study.storage. A cache that has not read a trial cannot suggest for it, so both are needed."""
    assert private.cached_storage(study) is not storage
    assert private.uncached_storage(study) is storage
    assert study.ask().storage is private.cached_storage(study)
    in_memory = optuna.create_study()
    assert private.uncached_storage(in_memory) is private.cached_storage(in_memory)


def test_a_trial_has_the_id_that_its_storage_knows_it_by(study, storage):
    """Missing: Trial.id. Numbers are a study's; every method of a storage takes ids."""
    optuna.create_study(study_name="other", storage=storage).ask()
    trial = study.ask()
    assert storage.get_trial(private.id_of(trial)).number == trial.number == 0
    assert private.id_of(trial) == private.id_of(study.trials[0]) != 0


def test_attributes_are_written_in_one_transaction_and_a_trial_shows_them(study, storage):
    """Missing: Trial.set_user_attrs, of several. One after the other, a kill leaves some of them."""
    trial = study.ask()
    private.set_trial_user_attrs(storage, private.id_of(trial), {"a": 1, "b": {"c": [2]}})
    assert trial.user_attrs == {}
    private.show_attrs(trial, {"a": 1})
    assert trial.user_attrs == {"a": 1}
    assert study.trials[0].user_attrs == {"a": 1, "b": {"c": [2]}}
    with pytest.raises(TypeError):
        private.set_trial_user_attrs(storage, private.id_of(trial), {"a": 3, "d": object()})
    assert study.trials[0].user_attrs == {"a": 1, "b": {"c": [2]}}
    study.tell(trial, 1.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        private.set_trial_user_attrs(storage, private.id_of(trial), {"a": 3})


def test_a_trials_state_is_read_alone(study, storage):
    """Missing: BaseStorage.get_trial_state. get_trial reads all of a trial, from six tables."""
    trial = study.ask()
    assert private.trial_state(storage, private.id_of(trial)) == TrialState.RUNNING
    study.tell(trial, 1.0)
    assert private.trial_state(storage, private.id_of(trial)) == TrialState.COMPLETE
    with pytest.raises(KeyError):
        private.trial_state(storage, 999)


def test_a_running_trial_is_stale_after_a_heartbeat_and_silence(study, storage):
    """Missing: a list of stale trials. fail_stale_trials fails them at once, with no reason."""
    silent, alive, never = study.ask(), study.ask(), study.ask()
    storage.heartbeat_interval, storage.grace_period = 15, 60
    for trial in (silent, alive):
        storage.record_heartbeat(private.id_of(trial))
    with storage.engine.begin() as connection:
        ago = text("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-70 seconds') WHERE trial_id = :id")
        connection.execute(ago, {"id": private.id_of(silent)})
    study_id = storage.get_study_id_from_name(study.study_name)
    assert private.stale_trial_ids(storage, study_id) == {private.id_of(silent)}
    assert never.number == 2


def test_the_cache_calls_these_methods_of_a_storage(study, storage, monkeypatch):
    """Missing: a cache that calls public methods. An outage in these would not be waited out."""
    called = []

    def noting(name):
        inherited = getattr(storage, name)

        def call(*args, **kwargs):
            called.append(name)
            return inherited(*args, **kwargs)

        return call

    for name in private.CALLED_BY_CACHE:
        monkeypatch.setattr(storage, name, noting(name))
    study.ask().suggest_float("x", 0, 1)
    assert set(called) == set(private.CALLED_BY_CACHE)


def test_a_retry_carries_the_notes_of_optunas_own(study):
    """Missing: a retry of a trial that no heartbeat thread watched. The public callback takes the stale trial's all."""
    trial = study.ask()
    study.tell(trial, state=TrialState.FAIL)
    RetryHeartbeatStaleTrialCallback()(study, study.trials[0])
    notes = private.retry_notes(study.trials[0], undecided=False)
    assert notes == study.trials[1].system_attrs
    study.tell(study.ask(), state=TrialState.FAIL)
    assert private.retry_notes(study.trials[1], undecided=False) == {"failed_trial": 0, "retry_history": [0, 1]}
    assert private.retry_chain(study.trials[1]) == [0]
    assert private.retry_chain(study.trials[1]) == RetryHeartbeatStaleTrialCallback.retry_history(study.trials[1])


def test_successive_halving_notes_a_rung_before_its_verdict(storage):
    """Missing: a verdict without a note. A note of an attempt that was killed before the verdict counts twice."""
    study = optuna.create_study(storage=storage, pruner=SuccessiveHalvingPruner(min_resource=1, reduction_factor=2))
    trial = study.ask()
    trial.report(3.0, 1)
    trial.should_prune()
    (noted,) = study.trials
    assert noted.system_attrs == {"completed_rung_0": 3.0}
    assert "completed_rung_0" in private.retry_notes(noted, undecided=False)
    assert private.retry_notes(noted, undecided=True) == {"failed_trial": 0, "retry_history": [0]}


class Reversed(StudyView):
    """The finished trials, numbered from the last."""

    def visible_trials(self, deepcopy=True, states=None, use_cache=False):
        trials = super().visible_trials(deepcopy, (TrialState.COMPLETE,), use_cache)
        for trial, number in zip(trials, reversed(range(len(trials))), strict=True):
            trial.number = number
        return trials


class Seen(BaseSampler):
    """A sampler that keeps the numbers of the trials that it saw."""

    def __init__(self) -> None:
        self.numbers: list[list[int]] = []

    def infer_relative_search_space(self, study, trial):
        self.numbers.append([each.number for each in study.get_trials(deepcopy=True)])
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        return 0.5


def test_samplers_and_pruners_see_the_trials_of_a_view(study):
    """Missing: trials as a sampler shall see them, as an argument. TPE and the pruners read the study themselves."""
    study.add_trials([create_trial(value=float(value)) for value in range(3)])
    study.add_trial(create_trial(state=TrialState.FAIL))
    view = Reversed(study)
    assert [trial.number for trial in view.get_trials()] == [2, 1, 0]
    assert view.study_name == study.study_name and view.best_value == 0.0
    sampler = Seen()
    optuna.Trial(Reversed(study, sampler=sampler), private.id_of(study.ask())).suggest_float("x", 0, 1)
    assert sampler.numbers == [[2, 1, 0]]


def test_tpe_reads_the_trials_of_a_view(study):
    """As above, of what TPE reads: with a threshold of finished trials, it models them or draws at random."""
    for value in range(3):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        study.tell(trial, float(value))

    class Empty(StudyView):
        def visible_trials(self, deepcopy=True, states=None, use_cache=False):
            return []

    def drawn(view):
        sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=3, multivariate=True)
        return optuna.Trial(view(study, sampler=sampler), private.id_of(study.ask())).suggest_float("x", 0, 1)

    assert drawn(StudyView) != drawn(Empty)


def test_hyperbands_brackets_divide_the_trials_of_a_view(study):
    """Missing: brackets of a study that is not Optuna's own. Its _BracketStudy is a plain Study over the storage."""
    study.add_trials([create_trial(value=float(value)) for value in range(12)])
    pruner = HyperbandOfView(min_resource=1, max_resource=9, reduction_factor=3)
    trial = create_trial(state=TrialState.RUNNING, intermediate_values={1: 1.0})
    seen: list[list[int]] = []

    class Spying(StudyView):
        def get_trials(self, deepcopy=True, states=None):
            trials = super().get_trials(deepcopy, states)
            if self.is_member is not None:
                seen.append([trial.number for trial in trials])
            return trials

    view = Spying(study)
    rungs = {}
    for number in range(12):
        trial = study.ask()
        trial.report(1.0, 9)
        frozen = study.trials[trial.number]
        frozen.number = number
        pruner.prune(view, frozen)
        rungs[number] = pruner.first_rung(view, number)
    assert set(rungs.values()) == {1, 3, 9}, "each bracket begins at its own rung"
    for number, members in zip(range(12), seen, strict=False):
        assert {rungs[member] for member in members if member < 12} == {rungs[number]}


def test_only_one_file_uses_private_names_of_optuna():
    private_names = set(_private_names_of_optuna())
    assert {"_storage", "_trial_id", "_get_stale_trial_ids", "_pruners", "_cached_frozen_trial"} <= private_names
    found = []
    for path in sorted((ROOT / "harness").rglob("*.py")):
        if path != OWNER:
            found += [f"{path.relative_to(ROOT)}:{line}: {name}" for line, name in _uses(path, private_names)]
    assert found == []


def _private_names_of_optuna() -> Iterator[str]:
    """What its studies, trials, storages, samplers and pruners call with one leading underscore."""
    folder = Path(optuna.__file__).parent
    for part in ("study", "trial", "storages", "samplers", "pruners"):
        for path in (folder / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    yield from _private(node.attr)
                elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                    yield from _private(node.name)


def _private(name: str) -> Iterator[str]:
    if name.startswith("_") and not name.startswith("__"):
        yield name


def _uses(path: Path, private_names: set[str]) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "optuna":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, name) for name in names if name.startswith("_"))
        own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        if isinstance(node, ast.Attribute) and not own and node.attr in private_names:
            yield node.lineno, node.attr
        if isinstance(node, ast.ClassDef) and "optuna" in ast.unparse(tree):
            yield from ((node.lineno, name) for name in _overridden(path, node.name, private_names))


def _overridden(path: Path, class_name: str, private_names: set[str]) -> Iterator[str]:
    """Private names that a subclass of Optuna's uses of itself."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    kind = getattr(module, class_name, None)
    bases = (optuna.Study, FrozenTrial, BaseStorage, BaseSampler, BasePruner)
    if isinstance(kind, type) and issubclass(kind, bases):
        nodes = list(ast.walk(ast.parse(inspect.getsource(kind))))
        names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        names |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        yield from names & private_names
