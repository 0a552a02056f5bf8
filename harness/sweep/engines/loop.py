"""What one worker does, whatever engine runs it: load, connect, work, send what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from harness.data.store import ImageStore
from harness.errors import Interrupted
from harness.home import Home
from harness.spec.resolved import ResolvedStudy
from harness.sweep.events import Event, Ready, Said

# Seconds for sending what MLflow has yet to get: at the end of the work, and where the machine is to be given back.
_LAST_SENDING_S, _HURRIED_SENDING_S = 60.0, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJob:
    """All that a worker process is given. Everything in it can be pickled.

    ``gpus`` are the CUDA devices that workers are spread over, as CUDA_VISIBLE_DEVICES names them; ``index`` is the
    worker's number among ``workers`` on its machine. ``own_gpu``: Ray gave it a whole one. ``resume_anyway`` lets it
    score by another protocol than before.
    """

    spec: ResolvedStudy
    home: Home
    store: ImageStore
    device: str
    threads: int
    cores: int
    tags: dict[str, str]
    dataset: dict[str, str]
    experiment_id: str
    parent_run: str
    uid: str
    workers: int = 1
    index: int = 0
    gpus: tuple[str, ...] = ()
    own_gpu: bool = False
    resume_anyway: bool = False

    @property
    def on_gpu(self) -> int:
        """How many workers are on this one's GPU, itself included."""
        n_gpus = len(self.gpus) or 1
        return 1 if self.own_gpu else len(range(self.index % n_gpus, self.workers, n_gpus))


def run_worker(job: WorkerJob, publish: Callable[[Event], None], should_stop: Callable[[], bool]) -> None:
    """Run trials until the study has its target, or ``should_stop()``.

    Raises:
        HarnessError: what the user must see.
    """
    import optuna
    import torch

    from harness.machine.processes import exact_arithmetic, keep_memory, on_device, use_threads
    from harness.scoring.diversity import real_distance
    from harness.scoring.scorer import Scorers
    from harness.store.connection import grace_s
    from harness.store.database import open_storage
    from harness.store.studies import agree_on_protocols
    from harness.store.trials import Trials
    from harness.sweep.setup import WorkerSetup
    from harness.sweep.worker import work
    from harness.tracking.mirror import Mirror
    from harness.tracking.mlflow import MlflowTracker, new_client
    from harness.training.share import Share

    def say(text: str) -> None:
        publish(Said(text=text))

    def interrupt() -> None:
        if should_stop():
            raise Interrupted("stopped while scoring; saved")

    keep_memory()
    exact_arithmetic()
    use_threads(job.cores)
    device = torch.device(job.device)
    images = on_device(job.store.tensor(), device)
    scorers = Scorers(job.home, job.store, device, say, interrupt)
    say(f"reference statistics of {job.spec.scoring.final.reference} real images")
    try:
        rung, final = scorers.scorer(job.spec.scoring.rung), scorers.scorer(job.spec.scoring.final)
    except Interrupted:
        return
    publish(Ready())
    use_threads(job.threads)

    storage = open_storage(job.home, grace=grace_s(), say=say, stop=should_stop)
    study = optuna.load_study(study_name=job.spec.name, storage=storage)
    protocols = {"final": asdict(final.protocol), "rung": asdict(rung.protocol)}
    agree_on_protocols(study, job.home, protocols, resume_anyway=job.resume_anyway)
    mirror = Mirror(lambda: MlflowTracker(new_client(job.home), job.experiment_id, job.parent_run), say)
    setup = WorkerSetup(
        job=job,
        trials=Trials(study, job.spec, job.home),
        images_NHWC=images,
        device=device,
        follow=mirror.follow,
        final=final,
        rung=rung,
        stop=should_stop,
        publish=publish,
        real_distance=real_distance(images),
        share=Share.from_environment(job.spec.name, job.uid),
    )
    try:
        work(setup)
    finally:
        mirror.close(_HURRIED_SENDING_S if should_stop() else _LAST_SENDING_S)
