"""The GPU path, measured: ``python -m benchmarks.gpu`` takes under 8 minutes and writes JSON.

Rows: steps per second of the write-ups' loop, of ours operation by operation, and of ours as one CUDA graph, beside the
roofline (FLOP by torch's counter, bytes of what is read and written at least once); several trainings fused; trainings
of several processes at once; seconds of an FID of 10,000 and 50,000 images.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing as mp
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines import Loop
from benchmarks.rows import SYSTEMS, noise_images, system
from harness.errors import HarnessError
from harness.gan.fused import FusedRuns
from harness.gan.graph import capture
from harness.gan.networks import build
from harness.gan.run import Run
from harness.home import Home
from harness.scoring.distance import frechet_distance
from harness.scoring.extractors import Extractor
from harness.scoring.reference import Reference
from harness.scoring.sampling import generate, to_uint8
from harness.sweep.processes import exact_arithmetic
from harness.sweep.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
# Dense peaks of an H100 or H200 SXM (FLOP/s) and of its memory (bytes/s), NVIDIA's data sheets.
_PEAK_FLOPS, _PEAK_BYTES = {"bf16": 989e12, "tf32": 494e12, "float32": 67e12}, {"H100": 3.35e12, "H200": 4.8e12}
_ROUNDS, _TIMED_S = 5, 0.5
_SAMPLES = 10_000
_START_S = 90.0


def rate(step: Callable[[], Any]) -> float:
    """Calls per second: the median of several rounds, each closed by waiting for the device."""
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    rates = []
    for _ in range(_ROUNDS):
        began, calls = time.perf_counter(), 0
        while time.perf_counter() - began < _TIMED_S:
            for _ in range(10):
                step()
            calls += 10
            torch.cuda.synchronize()
        rates.append(calls / (time.perf_counter() - began))
    return statistics.median(rates)


def steps(recipe: str, batch: int, precision: str) -> dict[str, Any]:
    """Steps per second of one system, three ways, and of the roofline."""
    device = torch.device("cuda")
    hp = system(recipe, batch, precision)
    images = noise_images(hp, 2048).to(device)
    loop = Loop(hp, "write-up", device)
    real = images[:batch].permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
    row: dict[str, Any] = {"loop": rate(lambda: loop.step(real))}
    run = Run(hp, images, 0, device)
    row["eager"] = rate(run.advance)
    with FlopCounterMode(display=False) as counted:
        run.advance()
    row["gflop_per_step"] = counted.get_total_flops() / 1e9
    row["not_captured"] = capture(run)
    row["graph"] = rate(run.advance) if not row["not_captured"] else None
    row["graph_to_loop"] = row["graph"] / row["loop"] if row["graph"] else None
    parameters = [p.numel() for network in (run.generator, run.discriminator) for p in network.parameters()]
    # Adam reads and writes weights and both moments, and reads the gradient, in float32: the least that is moved.
    moved = 28 * sum(parameters)
    name = torch.cuda.get_device_name(device)
    memory = next((peak for key, peak in _PEAK_BYTES.items() if key in name), 3.35e12)
    row["roofline"] = 1 / max(counted.get_total_flops() / _PEAK_FLOPS[precision], moved / memory)
    row["share_of_roofline"] = (row["graph"] or row["eager"]) / row["roofline"]
    return row


def fused(recipe: str, batch: int, precision: str, members: int) -> dict[str, Any]:
    """Member steps per second of trainings that step together."""
    device = torch.device("cuda")
    hp = system(recipe, batch, precision)
    images = noise_images(hp, 2048).to(device)
    together = FusedRuns([Run(hp, images, seed, device) for seed in range(members)])
    return {"members": members, "member_steps": members * rate(together.advance)}


def _trial(recipe: str, batch: int, precision: str, ready: Any, seconds: float, counts: Any) -> None:
    exact_arithmetic()
    device = torch.device("cuda")
    hp = system(recipe, batch, precision)
    run = Run(hp, noise_images(hp, 2048).to(device), 0, device)
    capture(run)
    ready.wait()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        run.advance()
        done += 1
        if done % 50 == 0:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    counts.append(done / (time.perf_counter() - began))


def at_once(recipe: str, batch: int, precision: str, processes: int, seconds: float = 4.0) -> dict[str, Any]:
    """Steps per second, all together, of trainings in processes of their own on one GPU."""
    context = mp.get_context("spawn")
    with context.Manager() as manager:
        # Who waits in vain for one that died breaks the barrier.
        counts, ready = manager.list(), context.Barrier(processes, timeout=_START_S)
        workers = [
            context.Process(target=_trial, args=(recipe, batch, precision, ready, seconds, counts))
            for _ in range(processes)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failed := sum(worker.exitcode != 0 for worker in workers):
            raise RuntimeError(f"{failed} of {processes} processes failed")
        total = float(sum(counts))
    kimg_per_s = total * batch / 1000
    return {"processes": processes, "steps": total, "trials_per_hour_of_1000_kimg": 3600 * kimg_per_s / 1000}


def fid(home: Home, samples: int, precision: str) -> dict[str, Any]:
    """Seconds to generate, featurise and compare; the real side is at hand."""
    device = torch.device("cuda")
    hp = system("udacity32", 64)
    generator, _ = build(hp, 0, device)
    extractor = Extractor("inception-v3", home, device, print, precision=precision)
    reference = Reference(extractor(noise_images(hp, 5000).permute(0, 3, 1, 2).contiguous()).pooled)
    frechet_distance(reference.features, reference, device)
    began = time.perf_counter()
    pooled = extractor(to_uint8(generate(generator, hp, samples, 0, device))).pooled
    features_s = time.perf_counter() - began
    frechet_distance(pooled, reference, device)
    return {"samples": samples, "seconds": time.perf_counter() - began, "features_s": features_s}


def gains(rows: dict[str, dict[str, Any]], rate: str) -> list[str]:
    """What several trainings at once gain over one: the rows that have this rate, against the first of them."""
    found = {name: row[rate] for name, row in rows.items() if rate in row}
    (first, one), *others = found.items() if found else [("", 0.0)]
    return [f"{name}: {several / one:.2f} times {first}" for name, several in others]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA device, and torch finds none: `harness doctor` says why.", file=sys.stderr)
        return 2
    exact_arithmetic()
    home, rows, began = Home.from_environment(), dict[str, Any](), time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    about = {"date": datetime.date.today().isoformat(), **provenance("cuda")}
    path = arguments.out / f"{about['date']}-gpu.json"
    if path.exists():
        parser.error(f"{path} has results of today: --out FOLDER writes elsewhere")
    jobs: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        *(
            (f"steps, {recipe}, batch 128, {precision}", partial(steps, recipe, 128, precision))
            for recipe in (*SYSTEMS, "pytorch64")
            for precision in ("float32", "tf32", "bf16")
        ),
        *(
            (f"fused, pytorch64, batch 64, bf16, {members} members", partial(fused, "pytorch64", 64, "bf16", members))
            for members in (1, 8, 16)
        ),
        *(
            (f"{n} processes, udacity32, batch 64, bf16", partial(at_once, "udacity32", 64, "bf16", n))
            for n in (1, 4, 16)
        ),
        *(
            (f"FID {samples:,}, {precision}", partial(fid, home, samples, precision))
            for precision in ("float32", "bf16")
            for samples in (_SAMPLES, 5 * _SAMPLES)
        ),
    ]
    for name, job in jobs:
        try:
            rows[name] = job()
        except (RuntimeError, OSError, HarnessError) as error:
            rows[name] = {"failed": str(error).splitlines()[0]}
        print(f"{time.monotonic() - began:5.0f} s  {name}: {rows[name]}", flush=True)
        path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")  # a lost machine keeps its rows
    for name, row in rows.items():
        if "loop" in row:
            graph = f"{row['graph_to_loop']:.2f}" if row["graph_to_loop"] else f"no graph ({row['not_captured']})"
            print(f"{name}: {graph} times the loop, {row['share_of_roofline']:.1%} of the roofline")
    print("\n".join([*gains(rows, "member_steps"), *gains(rows, "trials_per_hour_of_1000_kimg")]))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
