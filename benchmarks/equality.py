"""Does a faster precision change the outcome? The same configurations trained in each, scored in each.

``python -m benchmarks.equality FOLDER`` trains every (learning rate, seed) once in float32 and once in bfloat16 on the
same real images, and scores each generator in float32 and in bfloat16. A line is kept per training, so that an
interrupted study goes on with ``--out``; ``--table`` only prints what is there, by default the newest.

With ``--device cuda`` trainings are in float32, TF32 and bfloat16, each as a CUDA graph where it can be one. Processes
with other seeds (``--first``) and files may share the GPU; their files, appended to one another, are one study.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from harness.data.store import ImageStore, open_store
from harness.errors import Diverged
from harness.gan.fast.precision import BF16, FLOAT32, TF32
from harness.gan.hparams import HParams, Precision, derive_seed
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, train
from harness.home import Home
from harness.machine.processes import exact_arithmetic
from harness.machine.provenance import provenance
from harness.scoring.extractors import Extractor
from harness.scoring.reference import Reference, frechet_distance, reference_images
from harness.scoring.sampling import samples
from harness.spec.tables import DataSpec

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "lab" / "2026-11.md"
# Of trainings by kind of device, the exact one first; generators are scored in the others of SCORED.
PRECISIONS: dict[str, tuple[Precision, ...]] = {"cpu": (FLOAT32, BF16), "cuda": (FLOAT32, TF32, BF16)}
SCORED = (FLOAT32, BF16)
SCORING_SEED = 2020
SMALL_LR, LARGE_LR = 2e-4, 2e-3


def kind(device: str) -> str:
    """What the results call the device."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def reference(images: Tensor, extractor: Extractor, n: int) -> Reference:
    """Statistics of n real images under an extractor."""
    return Reference(extractor(reference_images(images, n)).pooled)


def opened(arguments: argparse.Namespace) -> tuple[Home, DataSpec, ImageStore]:
    """(home, data, its images)."""
    home = Home(arguments.home)
    data = DataSpec(source="folder", image_size=arguments.size, channels=3)
    store = open_store(home, data, arguments.photos, study="equality", on_progress=lambda *_: None, say=print)
    return home, data, store


def trainings(arguments: argparse.Namespace, home: Home, data: DataSpec, images: Tensor) -> Iterator[dict[str, Any]]:
    """One row a training: its scores by scoring precision, None where it diverged."""
    device = torch.device(arguments.device)
    # On a CPU its time, which another process does not lengthen; on CUDA there is only the clock.
    clock, unit = (time.perf_counter, "s") if device.type == "cuda" else (time.process_time, "cpu_s")
    extractors = {p: Extractor("inception-v3", home, device, print, precision=p) for p in SCORED}
    references = {p: reference(images, extractor, arguments.samples) for p, extractor in extractors.items()}
    images = images.to(device)
    done = {(row["lr"], row["seed"], row["precision"]) for row in rows(arguments.out)}
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for lr in (SMALL_LR, LARGE_LR):
            for precision in PRECISIONS[device.type]:
                if (lr, seed, precision) in done:
                    continue
                hp = HParams(
                    image_size=data.image_size, channels=data.channels, ngf=arguments.width, ndf=arguments.width,
                    batch_size=64, lr_g=lr, lr_d=lr, precision=precision,
                )  # fmt: skip
                began = clock()
                last: Snapshot | None = None
                row: dict[str, Any] = {"lr": lr, "seed": seed, "precision": precision, "fid": dict.fromkeys(extractors)}
                try:
                    for event in train(
                        hp, images, budget=Budget(kimg=arguments.kimg), seed=derive_seed("equality", seed),
                        device=device,
                    ):  # fmt: skip
                        last = event if isinstance(event, Snapshot) else last
                except Diverged:
                    yield row
                    continue
                assert last is not None
                row[f"train_{unit}"] = round(clock() - began, 2)
                made, bad = samples(last.generator, hp, arguments.samples, SCORING_SEED, device)
                for name, extractor in extractors.items():
                    began = clock()
                    pooled = extractor(made).pooled
                    row["fid"][name] = None if bad else frechet_distance(pooled, references[name], device)
                    row[f"score_{name}_{unit}"] = round(clock() - began, 2)
                yield row


def rows(path: Path) -> list[dict[str, Any]]:
    """What was measured so far; a first line, and those of files that were appended, say only what was measured."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [line for line in lines if "fid" in line]


def about(path: Path) -> dict[str, Any]:
    """What was measured, where and with which code: the file's first line."""
    found: dict[str, Any] = json.loads(path.read_text().partition("\n")[0])
    return found


def interval(values: np.ndarray) -> tuple[float, float]:
    """(mean, half width of its 95 % interval), Student's t."""
    n = len(values)
    return float(values.mean()), float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: differences of the quicker precisions to float32, paired by seed."""
    trained = [p for p in PRECISIONS["cuda"] if any(row["precision"] == p for row in found)]
    lost = ", ".join(
        f"{sum(row['fid'][FLOAT32] is None for row in found if row['precision'] == p)} in {p}" for p in trained
    )
    found = [row for row in found if row["fid"]["float32"] is not None]
    fid = {(row["lr"], row["seed"], row["precision"]): row["fid"] for row in found}
    if not found:
        return "Nothing was scored yet."
    lines = [
        f"Trainings that diverged: {lost}. Only seeds at which neither precision diverged are paired.",
        "",
        "| training at learning rate | in | pairs | FID of float32 | FID of the other | difference (95 %) "
        "| Wilcoxon p | standard deviations | Levene p |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for lr, other in itertools.product((SMALL_LR, LARGE_LR), trained[1:]):
        pairs = np.array([
            [value["float32"], fid[lr, seed, other]["float32"]]
            for (rate, seed, precision), value in fid.items()
            if rate == lr and precision == "float32" and (lr, seed, other) in fid
        ])  # fmt: skip
        if len(pairs) < 2:
            continue
        (a, a_half), (b, b_half) = interval(pairs[:, 0]), interval(pairs[:, 1])
        mean, half = interval(pairs[:, 1] - pairs[:, 0])
        p = stats.wilcoxon(pairs[:, 0], pairs[:, 1]).pvalue
        lines.append(
            f"| {lr:g} | {other} | {len(pairs)} | {a:.1f} ± {a_half:.1f} | {b:.1f} ± {b_half:.1f} "
            f"| {mean:+.1f} ± {half:.1f} | {p:.2f} | {pairs[:, 0].std(ddof=1):.1f}, {pairs[:, 1].std(ddof=1):.1f} "
            f"| {stats.levene(pairs[:, 0], pairs[:, 1]).pvalue:.2f} |"
        )
    unit, seconds = ("cpu_s", "CPU seconds") if "train_cpu_s" in found[0] else ("s", "Seconds")
    took = ", ".join(
        f"{np.median([r[f'train_{unit}'] for r in found if r['precision'] == p]):.1f} ({p})" for p in trained
    )
    both = np.array([[row["fid"]["float32"], row["fid"]["bf16"]] for row in found])
    mean, half = interval(both[:, 1] - both[:, 0])
    relative = (both[:, 1] - both[:, 0]) / both[:, 0]
    rho = stats.spearmanr(both[:, 0], both[:, 1]).statistic
    taus = stats.kendalltau(both[:, 0], both[:, 1]).statistic
    best = both[np.argmin(both[:, 1]), 0] - both[:, 0].min()
    lines += [
        "",
        f"Scoring the same {len(both)} generators: bf16 - float32 = {mean:+.2f} ± {half:.2f} FID "
        f"({relative.min():+.1%} to {relative.max():+.1%}); Spearman {rho:.4f}, Kendall {taus:.4f}; "
        f"the best by bf16 is {best:.2f} FID worse than the best by float32.",
        "",
        f"{seconds}, medians: training {took}"
        + "; scoring "
        + ", ".join(f"{np.median([r[f'score_{p}_{unit}'] for r in found]):.1f} ({p})" for p in SCORED)
        + ".",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="?", help="a folder of real images")
    parser.add_argument("--home", type=Path, default=ROOT / "runs")
    parser.add_argument("--out", type=Path, help="one line a training")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=int, default=32, help="channels of the layers next to the image")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--device", choices=tuple(PRECISIONS), default="cpu")
    parser.add_argument("--kimg", type=float, default=30.0)
    parser.add_argument("--samples", type=int, default=1000, help="generated, and real, images of a score")
    parser.add_argument("--write", action="store_true", help="put the table into the lab book")
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    arguments = parser.parse_args()
    results, ending = ROOT / "benchmarks" / "results", f"equality-{arguments.device}.jsonl"
    if arguments.out is None:
        before = sorted(results.glob(f"*-{ending}")) if arguments.table else []
        arguments.out = before[-1] if before else results / f"{time.strftime('%Y-%m-%d')}-{ending}"
    if arguments.table and not arguments.out.is_file():
        parser.error(f"{arguments.out} is not there: without --table it is measured")
    if not arguments.table:
        if arguments.device == "cuda":
            if not torch.cuda.is_available():
                parser.error("torch finds no CUDA device: `harness doctor` says why")
            exact_arithmetic()
        home, data, store = opened(arguments)
        setting = {
            "size": data.image_size,
            "width": arguments.width,
            "kimg": arguments.kimg,
            "samples": arguments.samples,
        }
        now = {**setting, "fingerprint": store.fingerprint, **provenance(kind(arguments.device))}
        if arguments.out.is_file():
            then = about(arguments.out)
            same = ("size", "width", "kimg", "samples", "fingerprint", "git_commit")
            if other := [f"{key}: {then.get(key)}, not {now[key]}" for key in same if then.get(key) != now[key]]:
                parser.error(f"{arguments.out.name} was measured otherwise ({'; '.join(other)}): --out names another")
        else:
            arguments.out.write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), **now}) + "\n")
        for row in trainings(arguments, home, data, store.tensor()):
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    made = table(rows(arguments.out))
    print(made)
    if arguments.write:
        of = about(arguments.out)
        head = (
            f"{of['size']} px, width {of.get('width', 32)}, {of['kimg']:g} kimg, FID of {of['samples']:,} images; "
            f"{of['date']}, commit {of['git_commit']}, {of['cpu'] if arguments.device == 'cpu' else of['device']}:"
        )
        section = "equality" if arguments.device == "cpu" else f"equality-{arguments.device}"
        begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
        head_of_page, rest = PAGE.read_text().split(begin)
        PAGE.write_text(f"{head_of_page}{begin}\n\n{head}\n\n{made}\n\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()
