#!/usr/bin/env bash
# needs: long
# Tidying in MLflow's UI, then another start: (a) the experiment is renamed, (b) a trial's run is deleted, (c) the sweep's run is deleted.
# Expected: every trial has one run, with its curve; nothing is copied without its curve, nothing lands in a second experiment.
. "$(dirname "$0")/prelude.bash"
study photos; weights
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
timeout 800 "$HARNESS" sweep photos --data photos --device cpu --trials 2 >out 2>&1 || { tail -3 out; fail "first sweep"; }
cp -r home kept
look() { "$PY" - <<'PY'
import os, mlflow
from mlflow.entities import ViewType
c = mlflow.MlflowClient(f"sqlite:///{os.environ['HARNESS_HOME']}/mlflow.db"); bad = 0; seen = {}
for e in c.search_experiments(view_type=ViewType.ALL):
    for r in c.search_runs([e.experiment_id], run_view_type=ViewType.ALL):
        if r.data.tags.get("role") in ("trial", "sweep"):
            key = r.data.tags["harness.key"]; role = r.data.tags["role"]
            points = len(c.get_metric_history(r.info.run_id, "loss_d")) if role == "trial" else "-"
            print(f"   {e.name:10} {role:6} {key.split('/')[-1][:8]:8} {r.info.lifecycle_stage:8} {r.info.status:9} points of loss_d: {points}  parent {r.data.tags.get('mlflow.parentRunId','')[:6]}  id {r.info.run_id[:6]}")
            seen.setdefault(key, []).append((e.name, r.info.lifecycle_stage, points))
for key, runs in seen.items():
    live = [x for x in runs if x[1] == "active"]
    if len(runs) > 1 or (live and live[0][2] == 0): print("   WRONG:", key.split("/")[-1][:8], runs); bad += 1
raise SystemExit(bool(bad))
PY
}
failed=""
for what in rename child parent; do
  rm -rf home; cp -r kept home
  WHAT=$what "$PY" - <<'PY'
import os, mlflow
c = mlflow.MlflowClient(f"sqlite:///{os.environ['HARNESS_HOME']}/mlflow.db"); e = c.get_experiment_by_name("photos").experiment_id; what = os.environ["WHAT"]
runs = {r.data.tags["harness.key"]: r.info.run_id for r in c.search_runs([e]) if "harness.key" in r.data.tags}
if what == "rename": c.rename_experiment(e, "photos at 32 px")
else: c.delete_run(next(i for k, i in runs.items() if (k.endswith("/0") if what == "child" else "/sweep/" in k)))
PY
  timeout 800 "$HARNESS" sweep photos --data photos --device cpu --trials 2 >out 2>&1 || { tail -3 out; failed="$failed $what(exit)"; }
  echo "after '$what' and another start:"; grep -i mlflow out | sed 's/^/   said: /'; look || failed="$failed $what"
done
[ -z "$failed" ] && pass "every trial once, with its curve" || fail "runs doubled, scattered or without their curves after:$failed"
