"""How good are the published systems? Every recipe and variant, trained and scored alike on the same photographs.

    python -m benchmarks.systems run --data CELEBA              # those for 32 px: hours
    python -m benchmarks.systems run --data CELEBA celeba64     # any others, by name
    python -m benchmarks.systems report                         # prints the tables

Systems of one image size get the same images (one crop), length, seeds and scoring protocol: their scores compare with
each other, and not with those of another size. A line of the results is one training; a training that was killed
continues from its checkpoint. All systems take the first seed before any takes the second.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.api.trainings import adjusted, recipe_training
from harness.findings.headline import training_headline
from harness.gan.trainer import Progress
from harness.home import Home
from harness.machine.provenance import provenance
from harness.spec.files import file_names, load_recipe
from harness.spec.tables import DataSpec
from harness.training.run_folder import RunFolder
from harness.training.single import Training, Watch, run_training

RESULTS = Path(__file__).resolve().parent / "results" / "systems.jsonl"
# The crop that most systems of a size have; systems of other images (SVHN), or of another crop, get it too.
CROPS: dict[int, str | int] = {32: "face", 64: "after_resize", 128: 150}
_CROPS_IN_WORDS = {32: "the centred 108 px", 64: "the centred square", 128: "the centred 150 px"}
# 500 updates of batches of 128: with fewer a DCGAN hardly draws shapes (findings.headline).
KIMG, SAMPLES, SEEDS = 64.0, 1000, 3
METRICS = ("fid", "kid", "precision", "recall")


def systems(names: Sequence[str]) -> list[tuple[str, str]]:
    """(recipe, variant) of all variants of these recipes; without names of those for 32 px."""
    recipes = [load_recipe(name) for name in names or file_names("recipe")]
    return [
        (each.name, variant) for each in recipes if names or each.data.image_size == 32 for variant in each.variants
    ]


def job(recipe: str, variant: str, seed: int, kimg: float) -> Training:
    """A published system on the images that all of its size get."""
    training = recipe_training(recipe, variant)
    size = training.data.image_size
    images = DataSpec(source="celeba", image_size=size, crop=CROPS[size], resample="bilinear")
    training = dataclasses.replace(training, label=f"systems-{training.label}", data=images)
    return adjusted(training, kimg=kimg, samples=SAMPLES, seed=seed, exact=False)


def run(names: Sequence[str], data: Path, seeds: int, kimg: float, out: Path) -> None:
    """Train what is not in the results file ``out`` yet, and add a line for each training."""
    done = {(row["recipe"], row["variant"], row["seed"], row["kimg"]) for row in rows(out)}
    for seed in range(seeds):
        for recipe, variant in systems(names):
            if (recipe, variant, seed, kimg) in done:
                continue
            print(f"{recipe} {variant}, seed {seed}, {kimg:g} kimg", flush=True)
            row = {"recipe": recipe, "variant": variant, "seed": seed, "kimg": kimg}
            row |= trained(job(recipe, variant, seed, kimg), data)
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"  {row['verdict']}: {row['scores']}, {row['cpu_s']} CPU seconds", flush=True)


def trained(training: Training, data: Path) -> dict[str, Any]:
    """Scores of a training, and its CPU seconds at the rate that was seen; None where too little was left to train."""
    rates: list[tuple[float, float]] = []

    def on_progress(progress: Progress, _: float) -> None:
        rates.append((progress.kimg, time.process_time()))

    watch = Watch(
        stop=lambda: False, say=lambda line: print(f"  {line}", flush=True),
        on_images=lambda *_: None, on_progress=on_progress,
    )  # fmt: skip
    outcome = run_training(training, Home.from_environment(), source=data, device="cpu", watch=watch)
    folder = RunFolder(outcome.folder)
    summary = folder.read_summary()
    (first, began), (last, ended) = rates[0], rates[-1]
    return {
        "scores": {name: value for name, value in outcome.scores.items() if name.startswith(METRICS)},
        "verdict": training_headline(folder).kind,
        "failed": outcome.failed,
        "cpu_s": round(outcome.kimg * (ended - began) / (last - first), 1) if last > first else None,
        "size": summary["hparams"]["image_size"],
        "images": summary["images"],
        "precision": summary["hparams"]["precision"],
        "protocol_hash": summary["protocol_hash"],
        **provenance("cpu"),
    }


def rows(path: Path) -> list[dict[str, Any]]:
    """The trainings that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def report(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The tables, one for each image size, length and scoring protocol, in Markdown."""
    groups: dict[tuple[int, float, str], list[dict[str, Any]]] = defaultdict(list)
    for row in found:
        groups[row["size"], row["kimg"], row["protocol_hash"]].append(row)
    for (size, kimg, _), group in sorted(groups.items()):
        images = group[0]["images"]
        yield ""
        yield (
            f"**{size} px.** {images:,} aligned photographs of CelebA, {_CROPS_IN_WORDS[size]}; {kimg:g} kimg, "
            f"{1000 * kimg / images:.0f} epochs; {SAMPLES:,} generated against {SAMPLES:,} real images; "
            f"{group[0]['cpu']}, {group[0]['precision']}."
        )
        yield ""
        yield "| recipe | variant | FID | KID x 1000 | precision | recall | CPU minutes | trainings |"
        yield "|---|---|---:|---:|---:|---:|---:|---|"
        by_system: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for row in group:
            by_system[row["recipe"], row["variant"]].append(row)
        for (recipe, variant), trainings in sorted(by_system.items(), key=lambda item: _fid(item[1])):
            cells = [_cell(trainings, name, scale, digits) for name, scale, digits in
                     (("fid", 1, 0), ("kid", 1000, 0), ("precision", 1, 2), ("recall", 1, 2))]  # fmt: skip
            seconds = [row["cpu_s"] for row in trainings if row["cpu_s"]]
            minutes = f"{statistics.fmean(seconds) / 60:.1f}" if seconds else "–"
            kinds = [row["verdict"] for row in trainings]
            ended = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
            yield f"| [{recipe}](#{recipe}) | {variant} | {' | '.join(cells)} | {minutes} | {ended} |"


def _scores(trainings: Sequence[dict[str, Any]], metric: str) -> list[float]:
    """The scores of one metric, whose name goes on with features and number of samples."""
    return [value for row in trainings for name, value in row["scores"].items() if name.startswith(metric)]


def _fid(trainings: Sequence[dict[str, Any]]) -> float:
    scores = _scores(trainings, "fid")
    return statistics.fmean(scores) if scores else float("inf")


def _cell(trainings: Sequence[dict[str, Any]], metric: str, scale: float, digits: int) -> str:
    """Mean and, of several trainings, standard deviation."""
    scores = [scale * score for score in _scores(trainings, metric)]
    if not scores:
        return "–"
    spread = f" ± {statistics.stdev(scores):.{digits}f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run")
    running.add_argument("recipes", nargs="*", help="those for 32 px unless given")
    running.add_argument("--data", type=Path, required=True, help="folder of CelebA's aligned photographs")
    running.add_argument("--seeds", type=int, default=SEEDS)
    running.add_argument("--kimg", type=float, default=KIMG)
    running.add_argument("--out", type=Path, default=RESULTS)
    reporting = verbs.add_parser("report")
    reporting.add_argument("files", type=Path, nargs="*", default=[RESULTS])
    given = parser.parse_args()
    if given.verb == "run":
        run(given.recipes, given.data, given.seeds, given.kimg, given.out)
    else:
        print("\n".join(report([row for path in given.files for row in rows(path)])))


if __name__ == "__main__":
    main()
