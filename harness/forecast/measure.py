"""A forecast for a study on this machine, line by line while it is measured; nothing is written."""

from __future__ import annotations

import io
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.data.material import find_material
from harness.data.store import existing_store
from harness.errors import DataError
from harness.forecast.forecast import Forecast, mean_work
from harness.forecast.speed import measure_configurations, scoring_rates, scoring_time
from harness.home import Home
from harness.machine.processes import (
    choose_device,
    exact_arithmetic,
    fits_on,
    keep_memory,
    usable_cores,
    use_threads,
    visible_gpus,
)
from harness.scoring.protocol import INCEPTION
from harness.scoring.sampling import GRID_IMAGES, image_grid
from harness.scoring.weights import vgg_file
from harness.spec.fit import require_images, with_all_images
from harness.spec.resolved import ResolvedStudy
from harness.store.studies import find_record
from harness.sweep.engines.local import lanes_for, threads_per_worker, workers_for
from harness.sweep.run import resolve_precision
from harness.text import counted, duration

# Files to decode for the speed of preparing images.
_FILES = 200


def forecast(
    spec: ResolvedStudy,
    home: Home,
    *,
    source: Path | None,
    trials: int | None,
    workers: int | None,
    lanes: int | None,
    device: str,
    exact: bool,
    say: Callable[[str], None],
) -> Iterator[tuple[str, str]]:
    """Yield (what, finding) for each line once it is measured; a started study's trials are considered."""
    keep_memory()
    exact_arithmetic()
    on = torch.device(choose_device(device))
    workers = workers or workers_for(spec, trials or spec.budget.trials, on.type)[0]
    lanes = lanes or lanes_for(spec, trials or spec.budget.trials, on.type, workers)
    if on.type == "cpu":  # what each trial will have
        use_threads(threads_per_worker(usable_cores(), workers * lanes))
    spec, _ = resolve_precision(spec, on.type, exact)
    images, (n_images, n_held_out), store_bytes, prepare_s = _images(spec, home, source, say)
    spec, _ = with_all_images(spec, n_images, n_held_out)
    image_bytes = int(np.prod(images.shape[1:]))
    images = images[: max(spec.largest_batch(), _FILES)]
    # Memory besides what is measured: on a GPU the whole set, if it fits; on a CPU a final score's images.
    held_bytes = image_bytes * spec.scoring.final.samples if on.type == "cpu" else 0
    if on.type == "cuda" and fits_on(image_bytes * n_images, on):
        held_bytes, images = image_bytes * n_images, images.to(on)
    prepare = f"preparing them takes about {duration(prepare_s)}" if prepare_s else "prepared already"
    yield "images", f"{n_images:,} of {spec.data.image_size} px; {prepare}"
    yield (
        "precision",
        f"training {spec.fixed.precision or 'searched'}, rungs {spec.scoring.rung.precision}, final float32",
    )
    configurations = []
    for each in measure_configurations(spec, images, on):
        configurations.append(each)
        rate, parameters = 1 / each.s_per_kimg * 1000, each.parameters / 1e6
        yield f"  {each.name}", f"{rate:,.0f} images/s, {parameters:,.2f} M parameters"
    if not configurations:
        raise DataError("none of the tried configurations trains on these images", "Each diverged at once.")
    rates = scoring_rates(spec, on)
    for (name, precision), rate in rates.items():
        yield f"  {name} {precision}", f"{rate:,.1f} images/s"
    scoring = scoring_time(spec, home, rates, statistics.mean(each.s_per_sample for each in configurations), on)
    n_seeds = spec.scoring.sampling_seeds or 1
    again = f", {duration(scoring.again_s)} each of {n_seeds - 1} further sampling seeds" if n_seeds > 1 else ""
    published = spec.scoring.final.extractor == INCEPTION and vgg_file(home) is not None
    vgg = "; precision and recall by VGG16 come on top" if published else ""
    yield "  scores", f"{duration(scoring.rung_s)} a rung, {duration(scoring.final_s)} a final one{again}{vgg}"
    result = Forecast(spec, configurations, scoring, trials or spec.budget.trials, on.type, workers * lanes)
    yield "time", result.time(mean_work(spec, find_record(spec.name, home)))
    yield "memory", _memory(_peak_bytes(on) + held_bytes, on, workers)
    yield "disk", result.disk(home, store_bytes, _grid_bytes(images))
    yield "cores", _cores(on, workers, lanes)


def _images(
    spec: ResolvedStudy, home: Home, source: Path | None, say: Callable[[str], None]
) -> tuple[Tensor, tuple[int, int], int, float]:
    """Return (some images, numbers to train on and held out, bytes to write, seconds to prepare them)."""
    material = find_material(home, spec.data, source, study=spec.name, say=say, may_download=False)
    store = existing_store(home, material)
    if store is not None:
        require_images(spec, store.n_train, store.n_held_out)
        store.require_contrast()
        return store.tensor(), (store.n_train, store.n_held_out), 0, 0.0
    counts = material.n_train, material.count - material.n_train
    require_images(spec, *counts)
    started = time.perf_counter()
    decoded = [pixels for _, pixels, _ in material.sample(_FILES) if pixels is not None]
    if not decoded:
        raise DataError(
            f"none of the first {_FILES} files is usable", "`harness data prepare` names each with its reason."
        )
    if len(decoded) > 1 and all(np.array_equal(pixels, decoded[0]) for pixels in decoded):
        same = f"all {len(decoded):,} images that were looked at are the same"
        if len(decoded) == material.count:
            raise DataError(same, "Look at the files, and give others.")
        say(same)
    seconds = (time.perf_counter() - started) / len(decoded) * material.count / usable_cores()
    # Repeated up to the largest batch: speed does not depend on the pictures.
    times = -(-spec.largest_batch() // len(decoded))
    images = torch.from_numpy(np.stack(decoded * times))
    return images, counts, material.count * int(np.prod(decoded[0].shape)), seconds


def _memory(peak: int, device: torch.device, workers: int) -> str:
    n_devices = len(visible_gpus()) if device.type == "cuda" else 1
    together = -(-workers // n_devices)
    where = "GPU memory" if device.type == "cuda" else "memory"
    note = f", {peak * together / 1e9:,.1f} GB with {together} workers" if together > 1 else ""
    return f"{peak / 1e9:,.1f} GB of {where} a worker{note} (peak of these measurements)"


def _cores(device: torch.device, workers: int, lanes: int) -> str:
    share = f", {counted(torch.get_num_threads(), 'thread')} each"
    if device.type == "cuda":
        n_gpus = len(visible_gpus())
        share = f" on {n_gpus} GPUs" if n_gpus > 1 else ", which share the device"
        share += f"; up to {lanes} trials at once in each, whose gain is not in the time" if lanes > 1 else ""
    elif lanes > 1:
        share = f" of {lanes} trials at once{share}"
    return f"{usable_cores()}, {device.type}; {counted(workers, 'worker')}{share}"


def _grid_bytes(images_NHWC: Tensor) -> int:
    """Bytes of a PNG of real images, which compress about as well as samples."""
    shown = images_NHWC[:GRID_IMAGES].permute(0, 3, 1, 2).cpu().float().div(127.5).sub(1)
    buffer = io.BytesIO()
    Image.fromarray(image_grid(shown)).save(buffer, "png")
    return len(buffer.getvalue()) * GRID_IMAGES // len(shown)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved())  # with what graphs keep for themselves
    peak: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)
