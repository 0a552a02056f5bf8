"""The objective: the one place where suggesting, training, scoring, pruning and logging meet."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optuna
import torch
from torch import Tensor, nn

from harness.errors import HarnessError, Interrupted
from harness.gan.architecture import problems
from harness.gan.hparams import HParams, derive_seed
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, Progress, train
from harness.home import Home, seconds_from_environment
from harness.machine.processes import cuda_graphs
from harness.scoring.diversity import real_distance
from harness.scoring.fidelity import Scores
from harness.scoring.scorer import Scorer
from harness.spec.resolved import ResolvedStudy
from harness.spec.scoring import sampling_seeds
from harness.spec.suggest import suggest
from harness.store.attrs import StudyAttrs, TrialAttrs
from harness.store.lease import Lease, write_attrs
from harness.store.optuna_private import id_of
from harness.store.samplers import kimg_to_images
from harness.store.trials import Trials, trial_key
from harness.tracking.courier import Courier
from harness.tracking.tracker import RunInfo, Tracker
from harness.training.attempt import Attempt
from harness.training.share import Share


def checkpoint_every_s() -> float:
    """Seconds between checkpoints that no rung asks for: ``HARNESS_CHECKPOINT_S``, a minute unless it says otherwise.

    Raises:
        UsageError: it is no such number.
    """
    return seconds_from_environment("HARNESS_CHECKPOINT_S", 60.0)


class Degenerate(HarnessError):
    """The configuration makes no generator that can be scored: no network, or constant or non-finite images."""


@dataclass(slots=True, kw_only=True)
class Env:
    """What a worker has at hand for every trial. ``publish`` tells the supervisor; ``stop`` asks whether to end.

    ``workers`` share this machine's memory with it, of which it is number ``index``, and ``sharing`` of them its GPU's,
    itself included; a ``retired`` one takes no more trials, number 0 none beside others.
    """

    home: Home
    trials: Trials
    images_NHWC: Tensor
    device: torch.device
    tracker: Tracker
    final: Scorer
    rung: Scorer
    dataset: dict[str, str]
    tags: dict[str, str]
    stop: Callable[[], bool]
    publish: Callable[[dict[str, Any]], None]
    checkpoint_s: float = field(default_factory=checkpoint_every_s)
    share: Share | None = None
    workers: int = 1
    sharing: int = 1
    index: int = 0
    retired: bool = False
    attempt: Attempt | None = field(default=None)
    real_distance: float = field(init=False)

    def __post_init__(self) -> None:
        self.real_distance = real_distance(self.images_NHWC)


def objective(trial: optuna.Trial, spec: ResolvedStudy, env: Env, lease: Lease) -> list[float]:
    """Train one configuration and score it; the values are those of the study's objectives, the final score first.

    Raises:
        optuna.TrialPruned: the pruner stopped it at a rung.
        Diverged: a gradient was not finite.
        Degenerate: the generated images cannot be scored.
        Interrupted: ``env.stop()`` said so; a checkpoint is written.
        Fenced: the trial was declared dead.
        StorageLost: the database was away for too long; a checkpoint is written.
    """
    started = time.perf_counter()
    attrs = TrialAttrs.parse(trial.user_attrs)
    hp = spec.hparams({}, attrs.overrides) if attrs.overrides else suggest(trial, spec)
    seed = training_seed(trial, spec)
    attempt = env.attempt = open_attempt(trial, hp, seed, spec, env, lease)
    if impossible := problems(hp):
        raise Degenerate(f"no such network: {'; '.join(impossible)}")
    attempt.log_again(env.rung.objective)
    for step, value in sorted(attempt.rungs.items()):
        report(trial, value, step, attempt)
    budget = Budget(kimg=spec.budget.kimg, snapshots_kimg=spec.budget.rungs)
    for event in train(
        hp,
        env.images_NHWC,
        budget=budget,
        seed=seed,
        device=env.device,
        resume=attempt.state,
        snapshot_now=lambda: env.stop() or attempt.due(env.checkpoint_s),
        graph=cuda_graphs(),
    ):
        if isinstance(event, Progress):
            attempt.progress(event)
            env.publish({"number": trial.number, "kimg": event.kimg, "images_per_s": event.images_per_s})
            continue
        attempt.save(event)
        write_attrs(trial, TrialAttrs(saved_kimg=event.kimg, saved_s=round(time.perf_counter() - started, 2)))
        if event.kimg > attempt.resumed_kimg:
            env.publish({"number": trial.number, "saved": event.kimg})
        if env.stop():
            raise Interrupted(f"stopped at {event.kimg:.1f} kimg; saved")
        if event.mark is None:
            continue
        env.publish({"number": trial.number, "doing": "scoring"})
        attempt.grid(event, event.mark, final=event.mark == spec.budget.kimg)
        if spec.has_rungs:
            scores = checked(env.rung(event.generator, hp, all_metrics=False))
            score = scores.values[env.rung.objective]
            attempt.watch(event.mark, "feature_variance", scores.spread)
            attempt.rung(event.mark, env.rung.objective, score)
            report(trial, score, kimg_to_images(event.mark), attempt)
            env.publish({"number": trial.number, "kimg": event.kimg, "rung": score})
        decides = event.mark in spec.budget.rungs and not attrs.recipe
        if decides and env.trials.should_prune(trial):
            raise optuna.TrialPruned(f"{env.rung.objective} {score:.4g} at {event.mark:g} kimg")
        if event.mark < spec.budget.kimg:
            continue
        return conclude(trial, event, spec, env, attempt)
    raise AssertionError("the training ended without its last snapshot")


def report(trial: optuna.Trial, score: float, step: int, attempt: Attempt | None = None) -> None:
    """Tell the database a rung's score and the samples' diversity; of several objectives, the seconds too."""
    if attempt is not None and attempt.watched:
        write_attrs(trial, TrialAttrs(watched=attempt.watched))
    if len(trial.study.directions) == 1:
        trial.report(score, step)
        return
    if attempt is not None:
        before = TrialAttrs.parse(trial.user_attrs).rung_seconds
        write_attrs(trial, TrialAttrs(rung_seconds={**before, step: round(attempt.trained_s(step / 1000), 2)}))
    # As Trial.report, which refuses several objectives.
    trial.storage.set_trial_intermediate_value(id_of(trial), step, score)


def conclude(trial: optuna.Trial, event: Snapshot, spec: ResolvedStudy, env: Env, attempt: Attempt) -> list[float]:
    """Score the finished generator, publish its weights, keep the scores; the score is the sampling seeds' mean."""
    scores = checked(env.final(event.generator, attempt.hp, all_metrics=True))
    values = [scores.values[env.final.objective], *resampled(event.generator, attempt.hp, spec, env)]
    attempt.publish(event)
    attempt.hand_over()
    attrs = TrialAttrs(
        watched=attempt.watched,
        scores=scores.values,
        unavailable=scores.unavailable,
        protocol_hash=scores.protocol_hash,
        score_s=round(scores.seconds, 2),
        samplings=values,
    )
    write_attrs(trial, attrs)
    found = {"score": statistics.fmean(values), "seconds": round(attempt.trained_s(), 2)}
    names = spec.objectives or ("score",)
    return [found[name] if name in found else scores.values[env.final.protocol.metric(name)] for name in names]


def training_seed(trial: optuna.Trial, spec: ResolvedStudy) -> int:
    """The seed that a plan gives a trial, or the one of its place in the search."""
    attrs = TrialAttrs.parse(trial.user_attrs)
    if attrs.training_seed is not None:
        return attrs.training_seed
    assert attrs.position is not None
    return derive_seed(spec.sampler.seed, "trial", attrs.position)


def resampled(generator: nn.Module, hp: HParams, spec: ResolvedStudy, env: Env) -> list[float]:
    """The final score of the same generator with each further sampling seed."""
    seeds = sampling_seeds(spec.scoring)[1:]
    return [checked(env.final.with_seed(seed)(generator, hp, all_metrics=False)).values[env.final.objective]
            for seed in seeds]  # fmt: skip


def open_attempt(trial: optuna.Trial, hp: HParams, seed: int, spec: ResolvedStudy, env: Env, lease: Lease) -> Attempt:
    """Name the attempt in the database, then open its folder and its run."""
    attrs, uid = TrialAttrs.parse(trial.user_attrs), StudyAttrs.parse(trial.study.user_attrs).uid
    folder = env.home.trial_dir(spec.name, uid, trial.number)
    earlier = [env.home.trial_dir(spec.name, uid, number) for number in env.trials.history(trial)]
    info = RunInfo(
        key=trial_key(spec.name, trial.number),
        name=f"trial {trial.number}",
        params=hp.to_dict(),
        tags={
            **env.tags,
            "role": "trial",
            "trial": str(trial.number),
            "trial_state": "RUNNING",
            "seed": str(seed),
            **{name: value for name, value in (("preset", attrs.preset), ("arm", attrs.arm)) if value},
            "protocol_hash": env.final.protocol.hash,
            "rung_protocol_hash": env.rung.protocol.hash,
        },
        dataset=env.dataset["name"],
        dataset_digest=env.dataset["fingerprint"],
        dataset_source=env.dataset["source"],
    )
    attempt = Attempt(
        folder,
        hp,
        seed,
        env.tracker,
        info,
        env.device,
        earlier=earlier,
        fence=lease.check,
        share=env.share,
        say=lambda text: env.publish({"doing": f"trial {trial.number}: {text}"}),
        real_distance=env.real_distance,
    )
    if isinstance(env.tracker, Courier):
        env.tracker.guard(attempt.run_id, lease.check_now)
    opened = TrialAttrs(
        hparams=hp.to_dict(),
        seed=seed,
        folder=str(folder.relative_to(env.home.root)),
        resumed_kimg=attempt.resumed_kimg,
    )
    write_attrs(trial, opened)
    shown = trial.params or {"preset": attrs.preset}
    start = {"state": "RUNNING", "kimg": attempt.resumed_kimg, "params": shown}
    env.publish({"number": trial.number, **start, "retry_of": attrs.retry_of})
    return attempt


def checked(scores: Scores) -> Scores:
    """The scores, if they are valid.

    Raises:
        Degenerate: they are not, with the reason.
    """
    if scores.reason:
        raise Degenerate(scores.reason)
    return scores
