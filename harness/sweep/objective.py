"""The objective: the one place where suggesting, training, scoring and pruning meet."""

from __future__ import annotations

import statistics
import time

import optuna
from torch import nn

from harness.errors import Interrupted
from harness.gan.architecture import problems
from harness.gan.hparams import HParams, derive_seed
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, Progress
from harness.spec.resolved import ResolvedStudy, suggest
from harness.spec.tables import sampling_seeds
from harness.store.optuna_private import id_of
from harness.store.records import StudyAttrs, TrialAttrs
from harness.store.samplers import kimg_to_images
from harness.store.trials import Lease, trial_key, write_attrs
from harness.sweep import events
from harness.sweep.setup import WorkerSetup
from harness.training.attempt import Attempt
from harness.training.history import History
from harness.training.loop import Degenerate, Saved, checked, train_on_disk
from harness.training.record import RunInfo, RunRecord
from harness.training.run_folder import RunFolder


def objective(trial: optuna.Trial, attempt: Attempt, setup: WorkerSetup) -> list[float]:
    """Train one configuration and score it; the values are those of the study's objectives, the final score first.

    Raises:
        optuna.TrialPruned: the pruner stopped it at a rung.
        Diverged: a gradient was not finite.
        Degenerate: the generated images cannot be scored.
        Interrupted: ``setup.stop()`` said so; a checkpoint is written.
        Fenced: the trial was declared dead.
        StorageLost: the database was away for too long; a checkpoint is written.
    """
    started = time.perf_counter()
    spec, number, publish = setup.spec, trial.number, setup.publish
    if impossible := problems(attempt.hp):
        raise Degenerate(f"no such network: {'; '.join(impossible)}")
    for step, value in sorted(attempt.history.rungs.items()):
        report(trial, value, step, attempt.history)
    budget = Budget(kimg=spec.budget.kimg, snapshots_kimg=spec.budget.rungs)
    for event in train_on_disk(
        attempt, setup.images_NHWC, budget=budget, stop=setup.stop, checkpoint_s=setup.checkpoint_s
    ):
        if isinstance(event, Progress):
            publish(events.Progressed(number=number, kimg=event.kimg, images_per_s=event.images_per_s))
        elif isinstance(event, Saved):
            write_attrs(trial, TrialAttrs(saved_kimg=event.kimg, saved_s=round(time.perf_counter() - started, 2)))
            if event.kimg > attempt.resumed_kimg:
                publish(events.Saved(number=number, kimg=event.kimg))
            if setup.stop():
                raise Interrupted(f"stopped at {event.kimg:.1f} kimg; saved")
            if event.mark is not None:
                publish(events.Scoring(number=number))
        else:
            assert event.mark is not None
            if spec.has_rungs:
                score_rung(trial, event, event.mark, attempt, setup)
            if event.mark == spec.budget.kimg:
                return conclude(trial, event, attempt, setup)
    raise AssertionError("the training ended without its last snapshot")


def score_rung(trial: optuna.Trial, event: Snapshot, kimg: float, attempt: Attempt, setup: WorkerSetup) -> None:
    """Score a half-trained generator and report it.

    Raises:
        optuna.TrialPruned: this is the place to stop. Baselines are trained to the end.
        Degenerate: its images cannot be scored.
    """
    name = setup.rung.objective
    scores = checked(setup.rung(event.generator, attempt.hp, all_metrics=False))
    score = scores.values[name]
    attempt.watch(kimg, "feature_variance", scores.spread)
    attempt.rung(kimg, score)
    report(trial, score, kimg_to_images(kimg), attempt.history)
    setup.publish(events.Scored(number=trial.number, kimg=event.kimg, score=score))
    decides = kimg in setup.spec.budget.rungs and not TrialAttrs.parse(trial.user_attrs).recipe
    if decides and setup.trials.should_prune(trial):
        raise optuna.TrialPruned(f"{name} {score:.4g} at {kimg:g} kimg")


def report(trial: optuna.Trial, score: float, step: int, history: History | None = None) -> None:
    """Tell the database a rung's score and the samples' diversity; of several objectives, the seconds too."""
    if history is not None and history.watched:
        write_attrs(trial, TrialAttrs(watched=history.watched))
    if len(trial.study.directions) == 1:
        trial.report(score, step)
        return
    if history is not None:
        before = TrialAttrs.parse(trial.user_attrs).rung_seconds
        write_attrs(trial, TrialAttrs(rung_seconds={**before, step: round(history.trained_s(step / 1000), 2)}))
    # As Trial.report, which refuses several objectives.
    trial.storage.set_trial_intermediate_value(id_of(trial), step, score)


def conclude(trial: optuna.Trial, event: Snapshot, attempt: Attempt, setup: WorkerSetup) -> list[float]:
    """Score the finished generator, publish its weights, keep the scores; the score is the sampling seeds' mean."""
    final, spec = setup.final, setup.spec
    scores = checked(final(event.generator, attempt.hp, all_metrics=True))
    samplings = [scores.values[final.objective], *resampled(event.generator, attempt.hp, setup)]
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


def resampled(generator: nn.Module, hp: HParams, setup: WorkerSetup) -> list[float]:
    """The final score of the same generator with each further sampling seed."""
    scorers = [setup.final.with_seed(seed) for seed in sampling_seeds(setup.spec.scoring)[1:]]
    return [checked(scorer(generator, hp, all_metrics=False)).values[setup.final.objective] for scorer in scorers]


def training_seed(trial: optuna.Trial, spec: ResolvedStudy) -> int:
    """The seed that a fixed study gives a trial, or the one of its position in the search."""
    attrs = TrialAttrs.parse(trial.user_attrs)
    if attrs.training_seed is not None:
        return attrs.training_seed
    assert attrs.position is not None
    return derive_seed(spec.sampler.seed, "trial", attrs.position)


def open_attempt(trial: optuna.Trial, setup: WorkerSetup, lease: Lease) -> Attempt:
    """Suggest the configuration, open the attempt's folder, name it in the database, and have it mirrored."""
    job, spec, number = setup.job, setup.spec, trial.number
    attrs, uid = TrialAttrs.parse(trial.user_attrs), StudyAttrs.parse(trial.study.user_attrs).uid
    hp = spec.hparams({}, attrs.overrides) if attrs.overrides else suggest(trial, spec)
    seed = training_seed(trial, spec)
    folders = [RunFolder(job.home.trial_dir(spec.name, uid, n)) for n in (*setup.trials.history(trial), number)]
    info = RunInfo(
        key=trial_key(spec.name, number),
        name=f"trial {number}",
        experiment=spec.name,
        params=hp.to_dict(),
        tags={
            **job.tags,
            "threads": str(job.threads),
            "role": "trial",
            "trial": str(number),
            "trial_state": "RUNNING",
            "seed": str(seed),
            **{name: value for name, value in (("preset", attrs.preset), ("arm", attrs.arm)) if value},
            "protocol_hash": setup.final.protocol.hash,
            "rung_protocol_hash": setup.rung.protocol.hash,
        },
        dataset=job.dataset["name"],
        dataset_digest=job.dataset["fingerprint"],
        dataset_source=job.dataset["source"],
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
        say=lambda text: setup.publish(events.Said(text=f"trial {number}: {text}")),
        real_distance=setup.real_distance,
    ).open()
    setup.follow(attempt.record_path, lease.check_now)
    opened = TrialAttrs(
        hparams=hp.to_dict(),
        seed=seed,
        folder=str(attempt.folder.path.relative_to(job.home.root)),
        resumed_kimg=attempt.resumed_kimg,
    )
    write_attrs(trial, opened)
    params = trial.params or {"preset": attrs.preset}
    setup.publish(events.Started(number=number, kimg=attempt.resumed_kimg, params=params, retry_of=attrs.retry_of))
    return attempt
