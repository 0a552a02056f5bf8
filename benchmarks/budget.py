"""What does a sweep find in five minutes? The same study, with other sampler seeds, by the code of several checkouts.

    python -m benchmarks.budget run mnist32 --checkout before=../old --checkout after=. --seconds 300 --seeds 3
    python -m benchmarks.budget report                            # prints the table

Each checkout runs its own study file of that name, with as many trials as there is time for, one sweep at a time and
the checkouts in turn. Its clock starts with its first trial: images and the reference statistics are there by then.
What counts is the best final score of the trials that ended in time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from harness.errors import NotFoundError
from harness.home import Home
from harness.machine.provenance import cpu_name
from harness.store.records import StudyRecord
from harness.store.studies import started_study, study_to_record

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "budget-mnist32.jsonl"
_POLL_S, _STOP_S = 2.0, 60.0
_SCORE = ("metric", "extractor", "samples", "reference")


def record_of(name: str, home: Home) -> StudyRecord | None:
    """What a sweep has in its database by now."""
    if not (home.root / "optuna.db").is_file():
        return None
    try:
        return study_to_record(started_study(name, home))
    except NotFoundError:  # not yet
        return None


def sweep(checkout: Path, home: Home, study: str, seed: int, seconds: float) -> dict[str, Any]:
    """One sweep, interrupted when its time is over."""
    text = (checkout / "search_spaces" / f"{study}.toml").read_text()
    name = f"{study}_{seed}"
    file = home.root / f"{name}.toml"
    file.write_text(re.sub(r"(?ms)^(\[sampler\].*?^seed = )\d+", rf"\g<1>{seed}", text))
    command = [sys.executable, "-P", "-m", "harness", "sweep", str(file), "--trials", "1000"]
    environment = {
        **os.environ, "PYTHONPATH": str(checkout), "HARNESS_HOME": str(home.root), "HARNESS_NO_VENV": "1",
        "HARNESS_CHECKPOINT_S": "300",
    }  # fmt: skip
    with (home.root / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=home.root, env=environment, stdout=log, stderr=log)
        started: float | None = None
        while process.poll() is None:
            time.sleep(_POLL_S)
            if started is None:
                record = record_of(name, home)
                begun = [trial.started for trial in record.trials if trial.started] if record else []
                started = min(begun).timestamp() if begun else None
            elif time.time() > started + seconds:
                process.send_signal(signal.SIGINT)
                process.wait(_STOP_S)
    record = record_of(name, home)
    if record is None or started is None:
        raise SystemExit(f"the sweep in {checkout} did not start: {home.root / f'{name}.log'}")
    ended = [trial for trial in record.trials if trial.ended and trial.ended.timestamp() <= started + seconds]
    finals = {t.number: float(t.value) for t in ended if t.state == "COMPLETE" and t.value is not None}
    return {
        "seed": seed,
        "seconds": seconds,
        "score": " ".join(str(record.attrs.spec["scoring"]["final"][key]) for key in _SCORE),
        "finals": finals,
        "pruned": sum(trial.state == "PRUNED" for trial in ended),
        "best": min(finals.values(), default=None),
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: a row a checkout, and each one's paired differences from the first."""
    if len({row["score"] for row in rows}) > 1:
        raise SystemExit("the checkouts score by different protocols, and cannot be compared")
    names = list(dict.fromkeys(row["checkout"] for row in rows))
    seeds = sorted({row["seed"] for row in rows})
    best = {  # infinite where none was there in time
        name: {row["seed"]: float(row["best"] or "inf") for row in rows if row["checkout"] == name} for name in names
    }
    lines = [
        f"| code | best {rows[0]['score']}, sampler seeds {seeds[0]} to {seeds[-1]} | mean | trials | scored |",
        "|---|---|---:|---:|---:|",
    ]
    for name in names:
        own = [row for row in rows if row["checkout"] == name]
        scores = [best[name][seed] for seed in seeds if seed in best[name]]
        trials = np.mean([len(row["finals"]) + row["pruned"] for row in own])
        scored = np.mean([len(row["finals"]) for row in own])
        shown = ", ".join(f"{score:.1f}" for score in scores)
        lines.append(f"| {name} ({own[0]['commit']}) | {shown} | {np.mean(scores):.1f} | {trials:.1f} | {scored:.1f} |")
    for name in names[1:]:
        both = [seed for seed in seeds if seed in best[name] and seed in best[names[0]]]
        differences = np.array([best[name][seed] - best[names[0]][seed] for seed in both])
        if len(both) < 2:
            continue
        half = stats.t.ppf(0.975, len(both) - 1) * differences.std(ddof=1) / np.sqrt(len(both))
        lines.append(f"\n{name} - {names[0]}: {differences.mean():+.1f} ± {half:.1f} (95 %, {len(both)} pairs)")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["run", "report"])
    parser.add_argument("study", nargs="?", default="mnist32")
    parser.add_argument("--checkout", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--homes", type=Path, default=Path("runs") / "budget", help="where the sweeps keep their files")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.is_file() else []
    for seed in range(arguments.seeds if arguments.do == "run" else 0):
        for given in arguments.checkout:
            name, _, folder = given.partition("=")
            if any((row["checkout"], row["seed"]) == (name, seed) for row in rows):
                continue
            checkout, home = Path(folder).resolve(), Home((arguments.homes / name).resolve())
            home.root.mkdir(parents=True, exist_ok=True)
            git = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
            commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
            about = {"checkout": name, "commit": commit, "date": time.strftime("%Y-%m-%d"), "cpu": cpu_name()}
            row = about | sweep(checkout, home, arguments.study, seed, arguments.seconds)
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            rows.append(row)
            print(json.dumps(row), flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
