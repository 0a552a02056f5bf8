"""Ours against what people run today, side by side in one process, interleaved; prints a Markdown table.

    make bench                    (or: python -m benchmarks.bench --rounds 5)

Baselines, written from their descriptions: the loop of the published write-ups (fakes not detached, fresh noise for the
generator's step, a loss read back every step, float32, NCHW) and torch-fidelity's Inception as it ships. Times are of
this machine; only the ratios of one run mean something.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from harness.gan.networks import build
from harness.gan.trainer import _Run
from harness.home import Home
from harness.scoring.fidelity import Extractor, frechet_distance
from harness.scoring.reference import Reference
from harness.study.hparams import HParams
from harness.sweep.provenance import provenance

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
Timed = Callable[[], None]


def training(hp: HParams, steps: int) -> tuple[Timed, Timed]:
    """(ours, the write-ups' loop), each training ``steps`` steps on the same images."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (1024, hp.image_size, hp.image_size, hp.channels), np.uint8))
    run = _Run(hp, images, 0, CPU)
    generator, discriminator = (network.to(memory_format=torch.contiguous_format) for network in build(hp, 0, CPU))
    opt_g, opt_d = (torch.optim.Adam(n.parameters(), 2e-4, (0.5, 0.999)) for n in (generator, discriminator))
    bce = nn.BCEWithLogitsLoss()

    def ours() -> None:
        for _ in range(steps):
            run.advance()

    def baseline() -> None:
        for _ in range(steps):
            real = images[torch.randint(len(images), (hp.batch_size,))].permute(0, 3, 1, 2).float() / 127.5 - 1
            ones, zeros = torch.ones(hp.batch_size), torch.zeros(hp.batch_size)
            opt_d.zero_grad()
            fake = generator(torch.rand(hp.batch_size, hp.z_dim) * 2 - 1)
            loss_d = bce(discriminator(real.contiguous()), ones) + bce(discriminator(fake), zeros)
            loss_d.backward()
            opt_d.step()
            opt_g.zero_grad()
            loss_g = bce(discriminator(generator(torch.rand(hp.batch_size, hp.z_dim) * 2 - 1)), ones)
            loss_g.backward()
            opt_g.step()
            loss_d.item()
            loss_g.item()

    return ours, baseline


def features(home: Home, n: int) -> tuple[Timed, Timed]:
    """(ours, torch-fidelity's extractor as it ships) on the same images."""
    from io import BytesIO

    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor = Extractor("inception-v3", home, CPU, print)
    buffer = BytesIO()
    torch.save(extractor.weights.state, buffer)
    buffer.seek(0)
    shipped = FeatureExtractorInceptionV3("shipped", ["2048"], feature_extractor_weights_path=buffer)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)

    def baseline() -> None:
        with torch.no_grad():
            shipped(images)

    return lambda: extractor([images]) and None, baseline


def distance(n: int) -> tuple[Timed, Timed]:
    """(ours, torch-fidelity's) Fréchet distance of n samples with 2,048 features."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    rng = np.random.default_rng(0)
    fake, real = (torch.from_numpy(rng.normal(size=(n, 2048)).astype(np.float32)) for _ in range(2))
    values = real.numpy()
    reference = Reference(real, values.mean(axis=0), np.cov(values, rowvar=False))
    expected = {"mu": reference.mu, "sigma": reference.sigma}

    def baseline() -> None:
        fid_statistics_to_metric(fid_features_to_statistics(fake), expected, False)

    return lambda: frechet_distance(fake, reference) and None, baseline


def logging(folder: Path, points: int) -> tuple[Timed, Timed]:
    """(ours in one batch, one ``log_metric`` call a value) of ``points`` metrics into MLflow on SQLite."""
    from harness.tracking.mlflow import MlflowTracker, client_for, open_experiment
    from harness.tracking.tracker import Point, RunInfo

    home = Home(folder)
    client = client_for(home)
    tracker = MlflowTracker(client, open_experiment(client, home, "bench"))
    run_id = tracker.start(RunInfo(key="bench", name="bench", params={}, tags={}))
    step = iter(range(10**9))

    def ours() -> None:
        tracker.log(run_id, [Point("ours", 1.0, next(step)) for _ in range(points)])

    def baseline() -> None:
        for _ in range(points):
            client.log_metric(run_id, "theirs", 1.0, step=next(step))

    return ours, baseline


def measure(pair: tuple[Timed, Timed], rounds: int) -> dict[str, float]:
    """Median seconds of both and the ratio with its range, rounds interleaved after one warm-up each."""
    times: tuple[list[float], list[float]] = ([], [])
    for warm in pair:
        warm()
    for _ in range(rounds):
        for run, kept in zip(pair, times, strict=True):
            started = time.perf_counter()
            run()
            kept.append(time.perf_counter() - started)
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return {
        "ours_s": statistics.median(times[0]),
        "baseline_s": statistics.median(times[1]),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    home = Home.from_environment()
    small = HParams(image_size=32, ngf=32, ndf=32, batch_size=64, bn="paper")
    wide = HParams(image_size=64, ngf=64, ndf=64, batch_size=64)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        rows: dict[str, Callable[[], tuple[Timed, Timed]]] = {
            "training step, 32 px, width 32, batch 64, against the write-ups' loop": lambda: training(small, 8),
            "training step, 64 px, width 64, batch 64, against the write-ups' loop": lambda: training(wide, 1),
            "Inception features, 50 images, against torch-fidelity's extractor": lambda: features(home, 50),
            "Fréchet distance, 500 images, against torch-fidelity's": lambda: distance(500),
            "Fréchet distance, 5,000 images, against torch-fidelity's": lambda: distance(5000),
            "100 metrics into MLflow, against log_metric": lambda: logging(Path(folder), 100),
        }
        print("| what | ours | baseline | ratio | range |\n|---|---:|---:|---:|---|")
        for name, make in rows.items():
            row = results[name] = measure(make(), arguments.rounds)
            print(
                f"| {name} | {row['ours_s']:.3f} s | {row['baseline_s']:.3f} s | {row['ratio']:.2f} | "
                f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f} |",
                flush=True,
            )
    made = {"date": datetime.date.today().isoformat(), "machine": platform.machine(), **provenance("cpu")}
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{made['date']}-cpu.json"
    path.write_text(
        json.dumps({**made, "rounds": arguments.rounds, "rows": results}, indent=1, ensure_ascii=False) + "\n"
    )
    print(f"\nwritten: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")


if __name__ == "__main__":
    main()
