"""The GPU path, measured: ``python -m benchmarks.gpu`` takes under 8 minutes and writes JSON.

Rows: steps per second of the write-ups' loop, of ours operation by operation, and of ours as one CUDA graph, beside the
roofline of the operations that ran; several trainings on one GPU, in a worker's lanes (threads with a graph and a
stream each) and in processes with and without MPS; trials an hour of celeba32's own configurations; a compiled step as
a graph; seconds of an FID of 10,000 and 50,000 images.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gc
import itertools
import json
import multiprocessing as mp
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.baselines import Loop
from benchmarks.rows import SYSTEMS, noise_images, system
from harness.errors import HarnessError
from harness.gan.architecture import problems
from harness.gan.fast.graph import capture
from harness.gan.fast.precision import TF32
from harness.gan.hparams import HParams, Precision
from harness.gan.networks import build
from harness.gan.run import Run
from harness.home import Home
from harness.machine.mps import process_service
from harness.machine.processes import exact_arithmetic
from harness.machine.provenance import provenance
from harness.scoring.extractors import Extractor
from harness.scoring.reference import Reference, frechet_distance
from harness.scoring.sampling import samples
from harness.spec.files import load_study_file
from harness.spec.resolved import ResolvedStudy, suggest
from harness.sweep.lanes import Lanes

ROOT = Path(__file__).resolve().parents[1]
# Dense peaks of an H100 or H200 SXM (FLOP/s) and of its memory (bytes/s), NVIDIA's data sheets.
_PEAK_FLOPS, _PEAK_BYTES = {"bf16": 989e12, "tf32": 494e12, "float32": 67e12}, {"H100": 3.35e12, "H200": 4.8e12}
_ROUNDS, _TIMED_S, _BATCH = 5, 0.2, 64
# What is trained several at once: the smallest system, which fills a GPU least, and one of four times the pixels.
AT_ONCE = (("udacity32", "bf16"), ("pytorch64", "bf16"))
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


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts FLOP and bytes of what runs inside, operation by operation, as kernels that are not merged move them.

    An operation reads its arguments and writes its results once, and reads what it changes in place, too; views move
    nothing. FLOP are those of torch's own formulas: convolutions and matrix products.

    Args:
        peak: FLOP a second.
        bandwidth: bytes a second.
    """

    def __init__(self, peak: float, bandwidth: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak, self.bandwidth = peak, bandwidth
        self.flop, self.bytes, self.seconds = 0.0, 0.0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        aliases = [each.alias_info for each in func._schema.returns]
        if "empty" in func.overloadpacket.__name__ or any(alias and not alias.is_write for alias in aliases):
            return out
        formula = flop_registry.get(func.overloadpacket)
        flop = float(formula(*args, **(kwargs or {}), out_val=out)) if formula else 0.0
        changed = [
            value
            for value, declared in zip(args, func._schema.arguments, strict=False)
            if declared.alias_info is not None and declared.alias_info.is_write
        ]
        written = changed or out
        moved = sum(each.nbytes for each in tree_leaves((args, kwargs, written)) if isinstance(each, Tensor))
        self.flop += flop
        self.bytes += moved
        self.seconds += max(flop / self.peak, moved / self.bandwidth)
        return out


def bandwidth() -> float:
    """Of this device's memory, bytes a second, by its data sheet."""
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in _PEAK_BYTES.items() if key in name), _PEAK_BYTES["H100"])


def steps(recipe: str, batch: int, precision: str) -> dict[str, Any]:
    """Steps per second of one system, three ways, and of the roofline."""
    device = torch.device("cuda")
    hp = system(recipe, batch, precision)
    images = noise_images(hp, 2048).to(device)
    loop = Loop(hp, "write-up", device)
    real = images[:batch].permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
    # The loop has PyTorch's own settings, TF32 convolutions among them: that is how people run it.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=True):
        row: dict[str, Any] = {"loop": rate(lambda: loop.step(real))}
    run = Run(hp, images, 0, device)
    row["eager"] = rate(run.advance)
    with Counted(_PEAK_FLOPS[precision], bandwidth()) as counted:
        run.advance()
    row["gflop_per_step"], row["gb_per_step"] = counted.flop / 1e9, counted.bytes / 1e9
    row["not_captured"] = capture(run)
    row["graph"] = rate(run.advance) if not row["not_captured"] else None
    for than in ("loop", "eager"):
        row[f"graph_to_{than}"] = row["graph"] / row[than] if row["graph"] else None
    # By all operations together, and by each of them for itself: a kernel cannot compute while another one moves.
    row["roofline"] = 1 / max(counted.flop / counted.peak, counted.bytes / counted.bandwidth)
    row["roofline_by_operation"] = 1 / counted.seconds
    row["share_of_roofline"] = (row["graph"] or row["eager"]) / row["roofline"]
    return row


def compiled_steps(recipe: str, batch: int, precision: str) -> dict[str, Any]:
    """Steps per second of a graph whose operations Inductor has merged, and how long that took."""
    began = time.perf_counter()
    run = training(system(recipe, batch, precision), compiles=True)
    return {"captured_s": time.perf_counter() - began, "steps": rate(run.advance)}


def training(hp: HParams, *, compiles: bool = False) -> Run:
    """One of random images, whose steps are a graph."""
    device = torch.device("cuda")
    run = Run(hp, noise_images(hp, 2048).to(device), 0, device)
    if reason := capture(run, compiles=compiles):
        raise RuntimeError(f"no graph: {reason}")
    return run


def steps_per_s(run: Run, ready: Any, seconds: float) -> float:
    """Of one training, from when all are ready."""
    stream = torch.cuda.current_stream()
    for _ in range(20):
        run.advance()
    stream.synchronize()
    ready.wait()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        run.advance()
        done += 1
        if done % 50 == 0:
            stream.synchronize()
    stream.synchronize()
    return done / (time.perf_counter() - began)


def in_lanes(recipe: str, batch: int, precision: str, lanes: int, *, seconds: float = 3.0) -> dict[str, Any]:
    """Steps per second, all together, of trainings in the lanes of one worker, opened one after another."""
    worker, ready, rates = Lanes(lanes), threading.Barrier(lanes, timeout=_START_S), list[float]()

    def lane() -> None:
        run = training(system(recipe, batch, precision))
        worker.has_trained()
        rates.append(steps_per_s(run, ready, seconds))

    try:
        worker.run(lane, torch.device("cuda"), 1)
    finally:
        ready.abort()
    return _together(rates, batch) | {"lanes": lanes}


def drawn(study: ResolvedStudy, n: int, precision: Precision) -> list[HParams]:
    """The first configurations that a random search of the study would train."""
    asked = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    found = (dataclasses.replace(suggest(asked.ask(), study), precision=precision) for _ in itertools.count())
    return list(itertools.islice((hp for hp in found if not problems(hp)), n))


def of_a_study(name: str, lanes: int, *, n: int = 16, kimg: float = 6.0) -> dict[str, Any]:
    """Trials an hour, without scores, from ``n`` of a study's own configurations trained for ``kimg`` in lanes."""
    study = load_study_file(name)
    configurations = drawn(study, n, TF32)
    todo, worker, ready = iter(configurations), Lanes(lanes), threading.Barrier(lanes, timeout=_START_S)
    captured_s, trained_s = list[float](), list[float]()

    def train(hp: HParams, before: Callable[[], object]) -> None:
        stream, began = torch.cuda.current_stream(), time.perf_counter()
        run = training(hp)
        stream.synchronize()
        captured_s.append(time.perf_counter() - began)
        worker.has_trained()  # the next lane opens
        before()
        began = time.perf_counter()
        for step in range(hp.updates(kimg)):
            run.advance()
            if step % 50 == 0:
                stream.synchronize()
        stream.synchronize()
        trained_s.append(time.perf_counter() - began)

    def lane() -> None:
        train(next(todo), ready.wait)
        for hp in todo:
            train(hp, lambda: None)

    try:
        worker.run(lane, torch.device("cuda"), 1)
    finally:
        ready.abort()
    trials = study.budget.trials
    return {
        "lanes": lanes,
        "captured_s": statistics.fmean(captured_s),
        "trials_per_hour_in_full": trials_per_hour(lanes, captured_s, trained_s, study.budget.kimg / kimg),
        "trials_per_hour": trials_per_hour(lanes, captured_s, trained_s, study.expected_kimg(trials) / trials / kimg),
    }


def trials_per_hour(lanes: int, captured_s: Sequence[float], trained_s: Sequence[float], longer: float) -> float:
    """Of lanes that are never idle, where a trial is this many times longer than what was timed."""
    return 3600 * lanes / (statistics.fmean(captured_s) + longer * statistics.fmean(trained_s))


def _together(rates: Sequence[float], batch: int) -> dict[str, Any]:
    total = sum(rates)
    return {"steps": total, "trials_per_hour_of_1000_kimg": 3.6 * total * batch / 1000}


def _trial(recipe: str, batch: int, precision: str, ready: Any, seconds: float, rates: Any) -> None:
    exact_arithmetic()
    rates.append(steps_per_s(training(system(recipe, batch, precision)), ready, seconds))


def _only_shared(text: str) -> None:
    """What MPS says of itself; RuntimeError where there is none, for such a row would be named wrongly."""
    if "take turns" in text:
        raise RuntimeError(text)


def at_once(
    recipe: str, batch: int, precision: str, processes: int, *, mps: bool = False, seconds: float = 3.0
) -> dict[str, Any]:
    """Steps per second, all together, of trainings in processes of their own on one GPU."""
    context = mp.get_context("spawn")
    with process_service(("0",), _only_shared) if mps else nullcontext(), context.Manager() as manager:
        # Who waits in vain for one that died breaks the barrier.
        rates, ready = manager.list(), context.Barrier(processes, timeout=_START_S)
        workers = [
            context.Process(target=_trial, args=(recipe, batch, precision, ready, seconds, rates))
            for _ in range(processes)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failed := sum(worker.exitcode != 0 for worker in workers):
            raise RuntimeError(f"{failed} of {processes} processes failed")
        return _together(list(rates), batch) | {"processes": processes}


def fid(home: Home, n: int, precision: str) -> dict[str, Any]:
    """Seconds to generate, featurise and compare; the real side is at hand."""
    device = torch.device("cuda")
    hp = system("udacity32", 64)
    generator, _ = build(hp, 0, device)
    extractor = Extractor("inception-v3", home, device, print, precision=precision)
    reference = Reference(extractor(noise_images(hp, 5000).permute(0, 3, 1, 2).contiguous()).pooled)
    frechet_distance(reference.features, reference, device)
    began = time.perf_counter()
    made, _ = samples(generator, hp, n, 0, device)
    pooled = extractor(made).pooled
    features_s = time.perf_counter() - began
    frechet_distance(pooled, reference, device)
    return {"samples": n, "seconds": time.perf_counter() - began, "features_s": features_s}


def gains(rows: dict[str, dict[str, Any]]) -> list[str]:
    """What several trainings at once gain over one graph alone."""
    lines = []
    for recipe, precision in AT_ONCE:
        one = rows.get(f"steps, {recipe}, batch {_BATCH}, {precision}", {}).get("graph")
        for name, row in rows.items():
            if one and "steps" in row and f"{recipe}, batch {_BATCH}, {precision}" in name:
                lines.append(f"{name}: {row['steps'] / one:.2f} times one graph")
    return lines


def jobs(home: Home) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, by the row's name."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for recipe, precision in itertools.product((*SYSTEMS, "pytorch64"), ("float32", "tf32", "bf16")):
        found[f"steps, {recipe}, batch {_BATCH}, {precision}"] = partial(steps, recipe, _BATCH, precision)
    for recipe, precision in AT_ONCE:
        what = f"{recipe}, batch {_BATCH}, {precision}"
        for lanes in (1, 2, 4, 8, 16):
            found[f"{lanes} lanes, {what}"] = partial(in_lanes, recipe, _BATCH, precision, lanes)
    recipe, precision = AT_ONCE[0]
    what = f"{recipe}, batch {_BATCH}, {precision}"
    for processes in (1, 4, 8, 16):
        found[f"{processes} processes, {what}"] = partial(at_once, recipe, _BATCH, precision, processes)
    for processes in (4, 8, 16):
        name = f"{processes} processes with MPS, {what}"
        found[name] = partial(at_once, recipe, _BATCH, precision, processes, mps=True)
    for lanes in (1, 8):
        found[f"celeba32's own configurations, {lanes} lane{'s' * (lanes > 1)}"] = partial(
            of_a_study, "celeba32", lanes
        )
    for recipe, precision in AT_ONCE:
        name = f"steps as a compiled graph, {recipe}, batch {_BATCH}, {precision}"
        found[name] = partial(compiled_steps, recipe, _BATCH, precision)
    for precision, n in itertools.product(("float32", "bf16"), (_SAMPLES, 5 * _SAMPLES)):
        found[f"FID {n:,}, {precision}"] = partial(fid, home, n, precision)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--only", default="", help="the rows whose names match this regular expression")
    parser.add_argument("--resume", action="store_true", help="keep today's rows that did not fail")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA device, and torch finds none: `harness doctor` says why.", file=sys.stderr)
        return 2
    exact_arithmetic()
    home, rows, began = Home.from_environment(), dict[str, Any](), time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    about = {"date": datetime.date.today().isoformat(), **provenance(torch.cuda.get_device_name())}
    path = arguments.out / f"{about['date']}-gpu.json"
    if path.exists():
        if not arguments.resume:
            parser.error(f"{path} has results of today: --resume adds to them, --out FOLDER writes elsewhere")
        rows = json.loads(path.read_text())["rows"]
    for name, job in jobs(home).items():
        if not re.search(arguments.only, name) or "failed" not in rows.get(name, {"failed": ""}):
            continue
        try:
            rows[name] = job()
        except (RuntimeError, OSError, HarnessError) as error:
            rows[name] = {"failed": str(error).splitlines()[0]}
        # A training and its graph hold on to each other, and on to memory that the next row's would miss.
        gc.collect()
        torch.cuda.empty_cache()
        print(f"{time.monotonic() - began:5.0f} s  {name}: {rows[name]}", flush=True)
        path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")  # a lost machine keeps its rows
    for name, row in rows.items():
        if "loop" in row:
            graph = f"{row['graph_to_loop']:.2f}" if row["graph_to_loop"] else f"no graph ({row['not_captured']})"
            print(f"{name}: {graph} times the loop, {row['share_of_roofline']:.1%} of the roofline")
    print("\n".join(gains(rows)))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
