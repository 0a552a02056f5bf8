"""The objective: the one place where suggesting, training, scoring and pruning meet."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from torch import Tensor, device

from harness.errors import Interrupted, Paused
from harness.findings.health import flaw_of
from harness.gan.architecture import problems
from harness.gan.hparams import canonical_json, derive_seed
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, Progress
from harness.scoring.scorer import Scorer
from harness.spec.resolved import ResolvedStudy, compared_params, suggest
from harness.spec.tables import sampling_seeds
from harness.store.optuna_private import id_of
from harness.store.records import StudyAttrs, TrialAttrs
from harness.store.samplers import kimg_to_images
from harness.store.trials import Lease, Trials, trial_key, write_attrs
from harness.sweep import messages
from harness.sweep.lanes import Lanes
from harness.sweep.messages import WorkerJob
from harness.text import against_bar, number
from harness.training.attempt import Attempt, Degenerate, Saved, checked, checkpoint_every_s, train_on_disk
from harness.training.checkpoint import History
from harness.training.run_folder import RunFolder, RunInfo, RunRecord
from harness.training.share import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """What a worker needs for each trial: its job, and what it has loaded. Its lanes share this."""

    job: WorkerJob
    trials: Trials
    images_NHWC: Tensor  # uint8, on the device if there is room
    device: device
    final: Scorer
    rung: Scorer
    follow: Callable[[Path, Callable[[], None]], None]  # as of Mirror
    publish: Callable[[messages.Event], None]
    real_distance: float
    lanes: Lanes = field(default_factory=Lanes)
    checkpoint_s: float = field(default_factory=checkpoint_every_s)
    share: Share | None = None


def objective(trial: optuna.Trial, attempt: Attempt, setup: WorkerSetup) -> list[float]:
    """Train one configuration and score it; return the values of the study's objectives. An early end is raised."""
    # Includes the time before it was paused.
    started = time.perf_counter() - (TrialAttrs.parse(trial.user_attrs).elapsed_s or 0.0)
    spec, number, publish = setup.job.spec, trial.number, setup.publish
    if impossible := problems(attempt.hp):
        raise Degenerate(f"no such network: {'; '.join(impossible)}")
    for step, value in sorted(attempt.history.rungs.items()):
        report(trial, value, step, spec, attempt.history)
        pause_at(trial, step, setup)
    budget = Budget(kimg=spec.budget.kimg, snapshots_kimg=spec.budget.drawn)
    images, stop, every_s = setup.images_NHWC, setup.lanes.stop, setup.checkpoint_s
    for event in train_on_disk(attempt, images, budget=budget, stop=stop, checkpoint_s=every_s):
        if isinstance(event, Progress):
            setup.lanes.has_trained()
            publish(messages.Progressed(number=number, kimg=event.kimg, images_per_s=event.images_per_s))
        elif isinstance(event, Saved):
            write_attrs(trial, TrialAttrs(saved_kimg=event.kimg, saved_s=round(time.perf_counter() - started, 2)))
            if event.kimg > attempt.resumed_kimg:
                publish(messages.Saved(number=number, kimg=event.kimg))
            if stop():
                raise Interrupted(f"stopped at {event.kimg:.1f} kimg; saved")
            if event.mark == spec.budget.kimg or is_to_be_scored(event.mark, attempt, spec):
                publish(messages.Scoring(number=number))
        else:
            assert event.mark is not None
            if is_to_be_scored(event.mark, attempt, spec):
                score_rung(trial, event, event.mark, attempt, setup)
            if event.mark == spec.budget.kimg:
                return conclude(trial, event, attempt, setup)
    raise AssertionError("the training ended without its last snapshot")


def is_to_be_scored(mark: float | None, attempt: Attempt, spec: ResolvedStudy) -> bool:
    """Whether this is a rung without a score: a trial that continues has those of before."""
    return spec.has_rungs and mark in spec.budget.marks and kimg_to_images(mark) not in attempt.history.rungs


def score_rung(trial: optuna.Trial, event: Snapshot, kimg: float, attempt: Attempt, setup: WorkerSetup) -> None:
    """Score a half-trained generator and report it; a trial other than a baseline may be paused or pruned here."""
    name = setup.rung.objective
    refuse_saturated(trial, kimg, attempt, setup.job.spec)
    scores = checked(setup.rung(event.generator, attempt.hp, all_metrics=False))
    score = scores.values[name]
    attempt.watch(kimg, "feature_variance", scores.spread)
    attempt.rung(kimg, score)
    if setup.job.spec.promotions:
        attempt.save(event)  # with the score, so that it is never computed again
    report(trial, score, kimg_to_images(kimg), setup.job.spec, attempt.history)
    setup.publish(messages.Scored(number=trial.number, kimg=event.kimg, score=score))
    pause_at(trial, kimg_to_images(kimg), setup)
    decides = kimg in setup.job.spec.budget.rungs and not TrialAttrs.parse(trial.user_attrs).recipe
    if decides and setup.trials.should_prune(trial):
        raise optuna.TrialPruned(f"{name} at {kimg:g} kimg: {against_bar(score, setup.trials.bar(trial))}")


def refuse_saturated(trial: optuna.Trial, kimg: float, attempt: Attempt, spec: ResolvedStudy) -> None:
    """Raise Degenerate where samples are noise or black and white shapes, which a quick score may like best.

    Not for collapsed samples: they often recover. A baseline is trained to the end, whatever its samples.
    """
    distance = attempt.history.watched.get(kimg_to_images(kimg), {}).get("sample_distance")
    if spec.promotions and not TrialAttrs.parse(trial.user_attrs).recipe and flaw_of(distance) == "saturated":
        raise Degenerate(f"saturated: samples are {number(distance)} times as far apart as real images")


def pause_at(trial: optuna.Trial, step: int, setup: WorkerSetup) -> None:
    """Raise Paused at a rung where the trial must wait for its promotion. Baselines train to the end."""
    attrs = TrialAttrs.parse(trial.user_attrs)
    rungs = [kimg_to_images(kimg) for kimg, _ in setup.job.spec.promotions]
    if step in rungs and not attrs.recipe and (attrs.kept_at is None or attrs.kept_at < step):
        raise Paused(step)


def report(trial: optuna.Trial, score: float, step: int, spec: ResolvedStudy, history: History | None = None) -> None:
    """Write a rung's score and the samples' diversity to the database; with several objectives, also the seconds."""
    if step in trial.storage.get_trial(id_of(trial)).intermediate_values:
        return  # reported before it was paused
    if history is not None and history.watched:
        write_attrs(trial, TrialAttrs(watched=history.watched))
    if not spec.objectives:
        trial.report(score, step)
        return
    if history is not None:
        before = TrialAttrs.parse(trial.user_attrs).rung_seconds
        write_attrs(trial, TrialAttrs(rung_seconds={**before, step: round(history.trained_s(step / 1000), 2)}))
    # What Trial.report does, but it refuses several objectives.
    trial.storage.set_trial_intermediate_value(id_of(trial), step, score)


def conclude(trial: optuna.Trial, event: Snapshot, attempt: Attempt, setup: WorkerSetup) -> list[float]:
    """Score the finished generator, publish its weights, store the scores; the final score is the mean over seeds."""
    final, spec = setup.final, setup.job.spec
    scores = checked(final(event.generator, attempt.hp, all_metrics=True))
    samplings = [scores.values[final.objective]]
    for scorer in [final.with_protocol(seed=seed) for seed in sampling_seeds(spec.scoring)[1:]]:
        again = checked(scorer(event.generator, attempt.hp, all_metrics=False))
        samplings.append(again.values[final.objective])
    attempt.publish(event)
    attempt.hand_over()
    attrs = TrialAttrs(
        watched=attempt.history.watched,
        scores=scores.values,
        unavailable=scores.unavailable,
        protocol_hash=scores.protocol_hash,
        score_s=round(scores.seconds, 2),
        samplings=samplings,
    )
    write_attrs(trial, attrs)
    own = {"score": statistics.fmean(samplings), "seconds": round(attempt.history.trained_s(), 2)}
    names = spec.objectives or ("score",)
    return [own[name] if name in own else scores.values[final.protocol.metric(name)] for name in names]


def open_attempt(trial: optuna.Trial, setup: WorkerSetup, lease: Lease) -> Attempt:
    """Suggest the configuration, open the attempt's folder, write its name to the database, start mirroring it."""
    job, spec, number = setup.job, setup.job.spec, trial.number
    attrs, uid = TrialAttrs.parse(trial.user_attrs), StudyAttrs.parse(trial.study.user_attrs).uid
    hp = spec.hparams({}, attrs.overrides) if attrs.overrides else suggest(trial, spec)
    seed = attrs.training_seed  # a fixed study's
    if seed is None:
        assert attrs.position is not None
        seed = derive_seed(spec.sampler.seed, "trial", attrs.position)
    tags = {**job.tags, "threads": str(job.threads), "role": "trial", "trial": str(number), "trial_state": "RUNNING"}
    named = {"seed": str(seed), "preset": attrs.preset, "arm": attrs.arm}
    tags |= {name: value for name, value in named.items() if value}
    tags |= {"hparams": canonical_json(hp.to_dict())}
    tags |= {"protocol_hash": setup.final.protocol.hash, "rung_protocol_hash": setup.rung.protocol.hash}
    folders = [RunFolder(job.home.trial_dir(spec.name, uid, n)) for n in (*setup.trials.history(trial), number)]
    info = RunInfo(
        key=trial_key(spec.name, number),
        name=f"trial {number}",
        experiment=spec.name,
        params=compared_params(spec.identity(), hp.to_dict()),
        tags=tags,
        dataset=job.store.named(spec.data.source),
        dataset_digest=job.store.fingerprint,
        dataset_source=job.store.named(spec.data.source),
    )
    attempt = Attempt(
        folders[-1],
        hp,
        seed,
        RunRecord(info=info, kimg=spec.budget.kimg),
        setup.device,
        rung_metric=setup.rung.objective,
        earlier=folders[:-1],
        fence=lease.check,
        share=setup.share,
        say=lambda text: setup.publish(messages.Said(text=f"trial {number}: {text}")),
        real_distance=setup.real_distance,
    ).open()
    setup.follow(attempt.record_path, lease.check_now)
    folder = str(attempt.folder.path.relative_to(job.home.root))
    write_attrs(trial, TrialAttrs(hparams=hp.to_dict(), seed=seed, folder=folder, resumed_kimg=attempt.resumed_kimg))
    params = trial.params or {"preset": attrs.preset}
    setup.publish(messages.Started(number=number, kimg=attempt.resumed_kimg, params=params, retry_of=attrs.retry_of))
    return attempt
