"""Whether a study takes long, measured before it starts; torch is imported only when it is measured."""

from __future__ import annotations

from itertools import islice

from harness.home import Home
from harness.spec.fit import with_all_images
from harness.spec.resolved import ResolvedStudy
from harness.spec.tables import ALL_AT_MOST

# Images that a slow machine trains (of 32 px) and scores in a second.
_SLOW_RATE, _SLOW_SCORING_RATE = 100, 5
_CONFIGURATIONS = 2


def surely_short(spec: ResolvedStudy, trials: int, limit_s: float) -> bool:
    """Whether even a slow machine would be done in time, so that no measurement is needed."""
    finals = spec.funnel(trials)[-1] * (spec.scoring.sampling_seeds or 1)
    scored = finals * spec.scoring.final.samples
    rate = _SLOW_RATE * min(1.0, (32 / spec.data.image_size) ** 2)
    return 1000 * spec.expected_kimg(trials) / rate + scored / _SLOW_SCORING_RATE < limit_s


def at_least_s(spec: ResolvedStudy, home: Home, trials: int, workers: int | None, device: str, exact: bool) -> float:
    """Seconds that a study takes at least, from a few steps on random pixels.

    It measures fewer configurations than ``harness plan``, and reads no images: speed does not depend on them.
    """
    import statistics

    import torch

    from harness.forecast.forecast import Forecast
    from harness.forecast.speed import measure_configurations, scoring_rates, scoring_time
    from harness.machine.processes import exact_arithmetic, usable_cores, use_threads
    from harness.sweep.engines.local import threads_per_worker, workers_for
    from harness.sweep.run import resolve_precision

    exact_arithmetic()
    on = torch.device(device)
    workers = workers or workers_for(spec, trials, on.type)[0]
    if on.type == "cpu":
        use_threads(threads_per_worker(usable_cores(), workers))
    spec, _ = resolve_precision(spec, on.type, exact)
    spec, _ = with_all_images(spec, ALL_AT_MOST, ALL_AT_MOST)
    shape = (spec.largest_batch(), spec.data.image_size, spec.data.image_size, spec.data.channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(on)
    configurations = list(islice(measure_configurations(spec, images, on), _CONFIGURATIONS))
    if not configurations:
        return 0.0
    s_per_sample = statistics.mean(each.s_per_sample for each in configurations)
    scoring = scoring_time(spec, home, scoring_rates(spec, on), s_per_sample, on)
    return Forecast(spec, configurations, scoring, trials, on.type, workers).at_least_s(None)
