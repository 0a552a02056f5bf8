"""What a study keeps from its start: its file and its scoring protocols. Others are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import optuna

from harness.errors import SpecDrift
from harness.home import Home
from harness.spec.resolved import Change, ResolvedStudy, changes
from harness.store.attrs import StudyAttrs
from harness.store.database import StudyLock, storage_of, write_study_attrs


def refuse_drift(spec: ResolvedStudy, stored: Mapping[str, Any], resume_anyway: bool) -> None:
    """Refuse a file that is not the one that the study was started with.

    Raises:
        SpecDrift: it has changed, and not soundly, or without ``resume_anyway``.
    """
    drift = changes(stored, spec.identity())
    if spec.plan:  # a fixed study may grow by arms, seeds and claims
        drift = [change for change in drift if change.key != "presets" and not _is_new_to_plan(change)]
    unsound = [change for change in drift if not change.sound]
    if not drift or (resume_anyway and not unsound):
        return
    listed = "\n".join(f"  {change}" for change in drift)
    copy = f"copy search_spaces/{spec.name}.toml to a new name and run that"
    if spec.plan:
        copy = f"copy search_spaces/{spec.plan.study}.toml to a new name and use that"
        hint = f"Trainings would not be comparable. Leave claims and budget as they were, or {copy}."
        if any(change.key == "plan.uid" for change in drift):
            hint = f"The search was restarted since, and {spec.name} belongs to the one before: {copy}."
    elif unsound:
        hint = f"Trials before and after would not be comparable ({unsound[0].key}): {copy}."
    else:
        hint = f"To search the changed study as a new one, {copy}. These changes are sound: --resume-anyway continues."
    raise SpecDrift(f"study {spec.name} was started with another file:\n{listed}", hint)


def _is_new_to_plan(change: Change) -> bool:
    return change.key.startswith(("plan.claims.", "plan.uid")) and change.old is None


def agree_on_protocols(
    study: optuna.Study, home: Home, protocols: Mapping[str, Mapping[str, Any]], *, resume_anyway: bool
) -> None:
    """Score by these protocols from now on; a study's protocols are those of its first worker.

    Args:
        study: on a :class:`harness.store.database.PatientStorage`.
        home: where the lock is, with SQLite.
        protocols: by kind of score, ``final`` and ``rung``: everything that its meaning depends on.
        resume_anyway: replace other protocols of the study. A report ranks the trials of the most frequent one.

    Raises:
        SpecDrift: the study has others.
    """
    outages = storage_of(study).outages
    lock = StudyLock(outages.url, home, f"study-{study.study_name}")
    mine = json.loads(json.dumps(protocols))  # as the database gives them back

    def agree(repeated: bool) -> None:
        with lock.held(), outages.not_waiting():
            known = StudyAttrs.parse(study.user_attrs).protocols
            if known and not resume_anyway:
                _refuse_other_protocols(study.study_name, known, mine)
            write_study_attrs(study, StudyAttrs(protocols=mine))

    outages.wait_out(agree)


def _refuse_other_protocols(
    name: str, known: Mapping[str, Mapping[str, Any]], mine: Mapping[str, Mapping[str, Any]]
) -> None:
    others = [
        f"{kind}.{key}: {mine[kind].get(key)}, not {value}"
        for kind, protocol in known.items()
        for key, value in protocol.items()
        if mine[kind].get(key) != value
    ]
    if others:
        raise SpecDrift(
            f"this machine would score study {name} by another protocol, and no score of its could be compared "
            f"({'; '.join(others)})",
            "Install what the study was started with (constraints.txt names it). On the machine that started it "
            "--resume-anyway continues; the report then ranks only the trials of the most frequent protocol.",
        )
