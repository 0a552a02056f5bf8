"""The arithmetic of a study: decided when it is started, and kept for all of its trials."""

from __future__ import annotations

from harness.errors import UsageError
from harness.gan.hparams import HParams
from harness.machine.processes import exact_arithmetic
from harness.scoring.protocol import INCEPTION
from harness.spec.resolved import ResolvedStudy, with_precision
from harness.spec.tables import examples

# bfloat16 must be faster by this factor: a smaller gain may be noise.
MIN_GAIN = 1.1


def resolve_precision(spec: ResolvedStudy, device: str, exact: bool) -> tuple[ResolvedStudy, list[str]]:
    """The study with every precision that its file leaves open, and what its user should hear of it.

    Rungs are scored in bfloat16 where that is faster: it changes no order (docs/performance.md). Trainings are float32,
    on CUDA in TF32 (docs/decisions/0010-tf32-on-cuda.md). bfloat16 is only offered.

    Args:
        spec: as the file has it.
        device: where it will run; timed on one thread, in CPU time, so that a busy machine decides alike.
        exact: float32 throughout, also where the file says otherwise.

    Raises:
        UsageError: exact, and the precision is searched.
    """
    if exact and "precision" in spec.space:
        raise UsageError(
            f"{spec.name} searches precision, and --exact is float32 throughout",
            "Take [space.precision] out of the file, or leave --exact away.",
        )
    of_training = spec.fixed.precision is None and "precision" not in spec.space
    of_rungs = spec.scoring.rung.precision is None
    if not (exact or of_training or of_rungs):
        return spec, []
    # What takes seconds to import is imported where a study is started, and not with every command.
    from harness.gan.fast.precision import BF16, FLOAT32, usual

    if exact:
        return with_precision(spec, training=FLOAT32, rung=FLOAT32), []
    import torch

    from harness.sweep import speed

    place = torch.device(device)
    exact_arithmetic()
    training = rung = None
    said: list[str] = []
    if of_training:
        training, gain = usual(place), speed.training_gain(_typical(spec), place)
        if gain >= MIN_GAIN:
            said.append(f'training in bfloat16 would be {gain:.1f} times faster here: precision = "bf16" in [fixed]')
    if of_rungs:
        quick = spec.scoring.rung.extractor == INCEPTION and speed.scoring_gain(spec.data.image_size, place) >= MIN_GAIN
        rung = BF16 if quick else FLOAT32
    return with_precision(spec, training=training, rung=rung), said


def _typical(spec: ResolvedStudy) -> HParams:
    """One configuration of the space: of each parameter that is always searched, its first or lowest value."""
    return spec.hparams({name: examples(param)[0] for name, param in spec.space.items() if not param.when})
