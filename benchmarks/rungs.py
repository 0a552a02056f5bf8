"""How well does a rung's score rank, and what does it cost? Full curves of random configurations, scored in many ways.

    python -m benchmarks.rungs record mnist32 --configurations 32      # hours; a line a configuration, continued
    python -m benchmarks.rungs record mnist32 --kimg 27 --out benchmarks/results/rungs-mnist32-27kimg.jsonl
    python -m benchmarks.rungs report mnist32                          # the lab book and its figure, of all lengths

Each configuration is trained in full, nothing is pruned, and every few kimg the same generator is scored under every
protocol. Rank correlation and regret are against the study's own final score. ``--part 1/2`` and ``--part 2/2`` record
in two processes; without ``--threads 1`` each takes all cores.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy import stats

from benchmarks.baselines import CPU
from harness.data.store import open_store
from harness.errors import Diverged
from harness.gan.hparams import derive_seed
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, train
from harness.home import Home
from harness.machine.processes import use_threads
from harness.machine.provenance import provenance
from harness.scoring.scorer import Scorers
from harness.spec.files import load_study_file
from harness.spec.resolved import ResolvedStudy, suggest, with_budget
from harness.spec.tables import ScoreSpec
from harness.sweep.worker import DIVERGED_VALUE

ROOT = Path(__file__).resolve().parents[1]
PAGE, FIGURE = ROOT / "docs" / "lab" / "2026-11.md", ROOT / "docs" / "rungs.png"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
_MARKS = 9


def protocols(spec: ResolvedStudy) -> dict[str, tuple[ScoreSpec, int]]:
    """Rung protocols by name, and at which of the marks each scores: Inception, which is dear, at every third."""
    small = {"extractor": "mobilenet-v2", "reference": spec.scoring.rung.reference}
    large = {"extractor": "inception-v3", "reference": spec.scoring.final.reference}
    return {
        "FID, MobileNetV2, 100": (ScoreSpec(samples=100, **small), 1),
        "FID, MobileNetV2, 250": (ScoreSpec(samples=250, **small), 1),
        "FID, MobileNetV2, 1,000": (ScoreSpec(samples=1000, **small), 1),
        "KID, MobileNetV2, 250": (ScoreSpec(samples=250, metric="kid", **small), 1),
        "FID, Inception bf16, 100": (ScoreSpec(samples=100, precision="bf16", **large), 3),
        "KID, Inception bf16, 100": (ScoreSpec(samples=100, metric="kid", precision="bf16", **large), 3),
    }


def recordings(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row a configuration: scores by protocol and kimg, seconds, and the final score."""
    spec, home = (
        with_budget(load_study_file(arguments.study), quick=False, trials=None, kimg=arguments.kimg),
        Home.from_environment(),
    )
    store = open_store(home, spec.data, arguments.photos, study=spec.name, on_progress=lambda *_: None, say=print)
    scorers = Scorers(home, store, CPU, print)
    final = scorers.scorer(spec.scoring.final)
    rungs = {
        name: (scorers.scorer(protocol), every)
        for name, (protocol, every) in protocols(spec).items()
        if re.search(arguments.protocols, name)
    }
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=arguments.seed))
    marks = [spec.budget.kimg * k / _MARKS for k in range(1, _MARKS + 1)]
    done = {row["number"] for row in rows(arguments.out)}
    part, parts = map(int, arguments.part.split("/"))
    for number in range(arguments.configurations):
        hp = suggest(drawn.ask(), spec)
        if number in done or number % parts != part - 1:
            continue
        row: dict[str, Any] = {"number": number, "hparams": hp.to_dict(), "scores": {n: {} for n in rungs}, "s": {}}
        began = time.process_time()
        try:
            for event in train(
                hp,
                store.tensor(),
                budget=Budget(kimg=spec.budget.kimg, snapshots_kimg=tuple(marks[:-1])),
                seed=derive_seed(spec.name, "rungs", number),
                device=CPU,
            ):
                if not isinstance(event, Snapshot):
                    continue
                assert event.mark is not None
                row["s"].setdefault("train", []).append(time.process_time() - began)
                for name, (scorer, every) in rungs.items():
                    if (marks.index(event.mark) + 1) % every == 0:
                        began = time.process_time()
                        scores = scorer(event.generator, hp, all_metrics=False)
                        row["scores"][name][f"{event.mark:g}"] = _finite(scores.values[scorer.objective])
                        row["s"].setdefault(name, []).append(time.process_time() - began)
                began = time.process_time()
            found = final(event.generator, hp, all_metrics=True)  # type: ignore[union-attr]
            row["final"] = _finite(found.values[final.objective])
            row["s"]["final"] = [time.process_time() - began]
        except Diverged as problem:
            row |= {"final": DIVERGED_VALUE, "diverged": problem.problem}
        yield row


def _finite(value: float) -> float:
    return value if math.isfinite(value) else DIVERGED_VALUE


def rows(path: Path) -> list[dict[str, Any]]:
    """What was recorded so far, by number; the first line is about the machine."""
    found = [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.is_file() else []
    return sorted(found, key=lambda row: int(row["number"]))


def ranks(scores: np.ndarray, final: np.ndarray) -> dict[str, float]:
    """Spearman with its bootstrapped 95 % interval; regret of picking one by this score, and of keeping a quarter."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(final), len(final)) for _ in range(1000)]
    rhos = [stats.spearmanr(scores[d], final[d]).statistic for d in draws if len(set(final[d])) > 2]
    order = np.argsort(scores)
    quarter = order[: max(1, len(order) // 4)]
    return {
        "rho": float(stats.spearmanr(scores, final).statistic),
        "low": float(np.nanquantile(rhos, 0.025)),
        "high": float(np.nanquantile(rhos, 0.975)),
        "regret": float(final[order[0]] - final.min()),
        "regret_quarter": float(final[quarter].min() - final.min()),
    }


def length(found: list[dict[str, Any]]) -> float:
    """kimg of a full training."""
    return max(float(mark) for row in found for scores in row["scores"].values() for mark in scores)


def table(found: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """(Markdown lines, one record a protocol and mark)."""
    final = np.array([row["final"] for row in found])
    train_s = np.median([sum(row["s"]["train"]) for row in found if "diverged" not in row])
    lines = [
        "| rung protocol | CPU s a score | kimg | Spearman (95 %) | regret of the best | regret of the best quarter |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    records = []
    for name in found[0]["scores"]:
        seconds = np.median([s for row in found for s in row["s"].get(name, [])])
        marks = sorted({float(mark) for row in found for mark in row["scores"][name]})
        for mark in marks:
            scores = np.array([row["scores"][name].get(f"{mark:g}", DIVERGED_VALUE) for row in found])
            measured = ranks(scores, final)
            records.append({"protocol": name, "kimg": mark, "of": length(found), **measured})
            lines.append(
                f"| {name} | {seconds:.2f} | {mark:g} | {measured['rho']:.2f} ({measured['low']:.2f} to "
                f"{measured['high']:.2f}) | {measured['regret']:.1f} | {measured['regret_quarter']:.1f} |"
            )
    final_s = np.median([row["s"]["final"][0] for row in found if "final" in row["s"]])
    sound = [row for row in found if "diverged" not in row]
    if len(sound) < len(found):
        lost = len(found) - len(sound)
        lines += ["", f"{lost} of them diverged and rank last by every score, which raises the correlations. Without:"]
        lines += ["", "| rung protocol | kimg | Spearman |", "|---|---:|---:|"]
        kept = np.array([row["final"] for row in sound])
        for record in records:
            at = f"{record['kimg']:g}"
            scores = np.array([row["scores"][record["protocol"]][at] for row in sound])
            lines.append(f"| {record['protocol']} | {at} | {stats.spearmanr(scores, kept).statistic:.2f} |")
    lines += ["", f"A full training takes {train_s:.0f} CPU seconds, its final score {final_s:.0f} (medians)."]
    return lines, records


def draw(records: list[dict[str, Any]]) -> None:
    """Spearman against kimg, a line a protocol, a panel a length of the training."""
    import matplotlib as mpl

    mpl.use("Agg")
    import pandas as pd
    import seaborn as sns
    from matplotlib import pyplot as plt

    grid = sns.relplot(
        pd.DataFrame(records), x="kimg", y="rho", hue="protocol", col="of", kind="line", marker="o", height=4.2,
        facet_kws={"sharex": False, "ylim": (-0.2, 1.02)},
    )  # fmt: skip
    grid.set_axis_labels("trained (kimg)", "Spearman with the final score").set_titles("trainings of {col_name:g} kimg")
    grid.savefig(FIGURE, dpi=110)
    plt.close(grid.figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["record", "report"])
    parser.add_argument("study")
    parser.add_argument("--photos", type=Path, help="the study's images, where they are not in a package")
    parser.add_argument("--configurations", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", default="1/1", help="K/N: every N-th configuration, beginning with the K-th")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kimg", type=float, help="length of a training, where it is not the study's")
    parser.add_argument("--protocols", default="", help="those whose names match this regular expression")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.out = arguments.out or ROOT / "benchmarks" / "results" / f"rungs-{arguments.study}.jsonl"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if arguments.do == "record":
        if arguments.threads:
            use_threads(arguments.threads)
        if not arguments.out.is_file():
            about = {"date": time.strftime("%Y-%m-%d"), "study": arguments.study, "seed": arguments.seed}
            about |= {"kimg": arguments.kimg} if arguments.kimg else {}
            arguments.out.write_text(json.dumps({**about, **provenance("cpu")}) + "\n")
        for row in recordings(arguments):
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row["number"], row["final"], flush=True)
        return
    report([arguments.out, *sorted(arguments.out.parent.glob(f"{arguments.out.stem}-*.jsonl"))])


def report(files: list[Path]) -> None:
    """Write the page's measured part, a table a file, and its figure."""
    lines, records = [], []
    for path in files:
        found, about = rows(path), json.loads(path.read_text().splitlines()[0])
        its_lines, its_records = table(found)
        what = f"{len(found)} configurations of `{about['study']}`"
        where = f"{about['date']}, {about['cpu']}, commit {about['git_commit']}"
        lines += ["", f"**Trainings of {length(found):g} kimg.** {what}; {where}:", "", *its_lines]
        records += its_records
    draw(records)
    made = "\n".join([BEGIN, *lines, "", END])
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + made + rest.split(END)[1])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
