"""Does a faster precision change the outcome? The same configurations trained in each, scored in each.

``python -m benchmarks.equality FOLDER`` trains every (learning rate, seed) once in float32 and once in bfloat16 on the
same real images, and scores each generator in float32 and in bfloat16. A line is kept per training, so that an
interrupted study goes on with ``--out``; ``--table`` only prints what is there, by default the newest.

``python -m benchmarks.equality --training --seeds 24`` is about training alone, so that more seeds fit into an
hour: MNIST, as in the study ``mnist32``, scored by MobileNetV2 in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from benchmarks.baselines import CPU
from harness.data.store import ImageStore, open_store
from harness.errors import Diverged
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, train
from harness.home import Home
from harness.scoring.distance import frechet_distance
from harness.scoring.extractors import Extractor
from harness.scoring.fidelity import degenerate
from harness.scoring.reference import Reference, reference_images
from harness.scoring.sampling import generate, to_uint8
from harness.study.hparams import HParams, derive_seed
from harness.study.images import DataSpec
from harness.sweep.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
PRECISIONS = ("float32", "bf16")
SCORING_SEED = 2020
SMALL_LR, LARGE_LR = 2e-4, 2e-3


def reference(images: Tensor, extractor: Extractor, n: int) -> Reference:
    """Statistics of n real images under an extractor."""
    return Reference(extractor(reference_images(images, n)).pooled)


def opened(arguments: argparse.Namespace) -> tuple[Home, DataSpec, ImageStore]:
    """(home, data, its images): MNIST where training alone is compared, else the photos."""
    home = Home(arguments.home)
    data = DataSpec(source="folder", image_size=arguments.size, channels=3)
    if arguments.training:
        data = DataSpec(source="mnist", image_size=32, channels=1)
    store = open_store(home, data, arguments.photos, study="equality", on_progress=lambda *_: None, say=print)
    return home, data, store


def trainings(arguments: argparse.Namespace, home: Home, data: DataSpec, images: Tensor) -> Iterator[dict[str, Any]]:
    """One row a training: its scores by scoring precision, None where it diverged."""
    extractors = {p: Extractor("inception-v3", home, CPU, print, precision=p) for p in ("float32", "bf16")}
    if arguments.training:
        extractors = {"float32": Extractor("mobilenet-v2", home, CPU, print)}
    references = {p: reference(images, extractor, arguments.samples) for p, extractor in extractors.items()}
    done = {(row["lr"], row["seed"], row["precision"]) for row in rows(arguments.out)}
    for seed in range(arguments.seeds):
        for lr in (SMALL_LR, LARGE_LR):
            for precision in PRECISIONS:
                if (lr, seed, precision) in done:
                    continue
                hp = HParams(
                    image_size=data.image_size, channels=data.channels, ngf=32, ndf=16 if arguments.training else 32,
                    batch_size=64, lr_g=lr, lr_d=lr, precision=precision,
                )  # fmt: skip
                began = time.process_time()
                last: Snapshot | None = None
                row: dict[str, Any] = {"lr": lr, "seed": seed, "precision": precision, "fid": dict.fromkeys(extractors)}
                try:
                    for event in train(
                        hp, images, budget=Budget(kimg=arguments.kimg), seed=derive_seed("equality", seed), device=CPU
                    ):
                        last = event if isinstance(event, Snapshot) else last
                except Diverged:
                    yield row
                    continue
                assert last is not None
                row["train_cpu_s"] = round(time.process_time() - began, 1)
                made = generate(last.generator, hp, arguments.samples, SCORING_SEED, CPU)
                for name, extractor in extractors.items():
                    began = time.process_time()
                    bad = degenerate(made)
                    pooled = extractor(to_uint8(made)).pooled
                    row["fid"][name] = None if bad else frechet_distance(pooled, references[name])
                    row[f"score_{name}_cpu_s"] = round(time.process_time() - began, 1)
                yield row


def rows(path: Path) -> list[dict[str, Any]]:
    """What was measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.is_file() else []


def about(path: Path) -> dict[str, Any]:
    """What was measured, where and with which code: the file's first line."""
    found: dict[str, Any] = json.loads(path.read_text().partition("\n")[0])
    return found


def score_name(found: list[dict[str, Any]]) -> str:
    """What the rows' scores are."""
    return "FID" if "bf16" in found[0]["fid"] else "FID by MobileNetV2"


def interval(values: np.ndarray) -> tuple[float, float]:
    """(mean, half width of its 95 % interval), Student's t."""
    n = len(values)
    return float(values.mean()), float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: differences between the precisions, paired by seed."""
    lost = {p: sum(row["fid"]["float32"] is None for row in found if row["precision"] == p) for p in PRECISIONS}
    found = [row for row in found if row["fid"]["float32"] is not None]
    fid = {(row["lr"], row["seed"], row["precision"]): row["fid"] for row in found}
    if not found:
        return "Nothing was scored yet."
    score = score_name(found)
    lines = [
        f"Diverged: {lost['float32']} trainings in float32, {lost['bf16']} in bf16. Paired are the seeds "
        "at which neither did.",
        "",
        f"| training at learning rate | pairs | {score}, float32 | {score}, bf16 | bf16 - float32 (95 %) "
        "| Wilcoxon p | standard deviations | Levene p |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for lr in (SMALL_LR, LARGE_LR):
        pairs = np.array([
            [value["float32"], fid[lr, seed, "bf16"]["float32"]]
            for (rate, seed, precision), value in fid.items()
            if rate == lr and precision == "float32" and (lr, seed, "bf16") in fid
        ])  # fmt: skip
        if len(pairs) < 2:
            continue
        (a, a_half), (b, b_half) = interval(pairs[:, 0]), interval(pairs[:, 1])
        mean, half = interval(pairs[:, 1] - pairs[:, 0])
        p = stats.wilcoxon(pairs[:, 0], pairs[:, 1]).pvalue
        lines.append(
            f"| {lr:g} | {len(pairs)} | {a:.1f} ± {a_half:.1f} | {b:.1f} ± {b_half:.1f} | {mean:+.1f} ± {half:.1f} "
            f"| {p:.2f} | {pairs[:, 0].std(ddof=1):.1f}, {pairs[:, 1].std(ddof=1):.1f} "
            f"| {stats.levene(pairs[:, 0], pairs[:, 1]).pvalue:.2f} |"
        )
    cpu = ", ".join(
        f"{np.median([r['train_cpu_s'] for r in found if r['precision'] == p]):.1f} ({p})" for p in PRECISIONS
    )
    if "bf16" not in found[0]["fid"]:
        return "\n".join([*lines, "", f"CPU seconds of a training, medians: {cpu}."])
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
        f"CPU seconds, medians: training {cpu}"
        + "; scoring "
        + ", ".join(f"{np.median([r[f'score_{p}_cpu_s'] for r in found]):.1f} ({p})" for p in PRECISIONS)
        + ".",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="?", help="a folder of real images")
    parser.add_argument("--home", type=Path, default=ROOT / "runs")
    parser.add_argument("--out", type=Path, help="one line a training")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--kimg", type=float, default=30.0)
    parser.add_argument("--samples", type=int, default=1000, help="generated, and real, images of a score")
    parser.add_argument("--training", action="store_true", help="training alone, on MNIST")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    arguments = parser.parse_args()
    what = "training" if arguments.training else "equality"
    results = ROOT / "benchmarks" / "results"
    if arguments.out is None:
        before = sorted(results.glob(f"*-{what}-cpu.jsonl")) if arguments.table else []
        arguments.out = before[-1] if before else results / f"{time.strftime('%Y-%m-%d')}-{what}-cpu.jsonl"
    if arguments.table and not arguments.out.is_file():
        parser.error(f"{arguments.out} is not there: without --table it is measured")
    if not arguments.table:
        home, data, store = opened(arguments)
        setting = {"size": data.image_size, "kimg": arguments.kimg, "samples": arguments.samples}
        now = {**setting, "fingerprint": store.fingerprint, **provenance("cpu")}
        if arguments.out.is_file():
            then = about(arguments.out)
            same = ("size", "kimg", "samples", "fingerprint", "git_commit")
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
            f"{of['size']} px, {of['kimg']:g} kimg, {score_name(rows(arguments.out))} of {of['samples']:,} images; "
            f"{of['date']}, commit {of['git_commit']}, {of['cpu']}:"
        )
        begin, end = f"<!-- {what}: begin -->", f"<!-- {what}: end -->"
        head_of_page, rest = PAGE.read_text().split(begin)
        PAGE.write_text(f"{head_of_page}{begin}\n\n{head}\n\n{made}\n\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()
