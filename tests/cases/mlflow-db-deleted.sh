#!/usr/bin/env bash
# needs: long
# runs/mlflow.db is deleted after a finished sweep; the same command again. Are curves and rung scores in MLflow again?
. "$(dirname "$0")/prelude.bash"
study photos; weights
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
kids() { for c in $(pgrep -P "$1"); do kids "$c"; echo "$c"; done; }
timeout 600 "$HARNESS" sweep photos --data photos --device cpu --trials 1 >one 2>&1 || { tail -3 one; fail "first sweep"; }
look() { "$PY" - <<'PY'
import os, mlflow
c = mlflow.MlflowClient(f"sqlite:///{os.environ['HARNESS_HOME']}/mlflow.db"); e = c.get_experiment_by_name("photos")
runs = [r for r in c.search_runs([e.experiment_id]) if r.data.tags.get("role") == "trial"]
names = {n for r in runs for n in r.data.metrics}; pictures = [len(c.list_artifacts(r.info.run_id, "images")) for r in runs]
print(sorted(names), pictures, [r.info.status for r in runs]); raise SystemExit(not ({"loss_g", "fid_mnv2_20"} <= names and all(pictures)))
PY
}
rm home/mlflow.db; timeout 600 "$HARNESS" sweep photos --data photos --device cpu --trials 1 >two 2>&1; tail -3 two; look || fail "curve, rungs or grids are missing after a start"
rm home/mlflow.db; timeout 600 "$HARNESS" reconcile >three 2>&1 || { tail -3 three; fail "reconcile"; }; cat three; look || fail "curve, rungs or grids are missing after reconcile"
pass "shown whole again"
