#!/usr/bin/env bash
# needs: long
# The study's experiment is deleted in MLflow's UI, then the sweep is extended. Expected: restored, all runs there once, with curves.
. "$(dirname "$0")/prelude.bash"
study photos; weights
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
timeout 800 "$HARNESS" sweep photos --data photos --device cpu --trials 2 >out 2>&1 || { tail -3 out; fail "first sweep"; }
"$PY" - <<'PY'
import os, mlflow
c = mlflow.MlflowClient(f"sqlite:///{os.environ['HARNESS_HOME']}/mlflow.db"); c.delete_experiment(c.get_experiment_by_name("photos").experiment_id)
PY
timeout 800 "$HARNESS" sweep photos --data photos --device cpu --trials 3 >out 2>&1 || { tail -3 out; fail "second sweep"; }
"$PY" - <<'PY' && pass "three trials, each once, with its curve" || fail "see above"
import os, mlflow, collections
c = mlflow.MlflowClient(f"sqlite:///{os.environ['HARNESS_HOME']}/mlflow.db"); e = c.get_experiment_by_name("photos")
runs = [r for r in c.search_runs([e.experiment_id]) if r.data.tags.get("role") == "trial"]
keys = collections.Counter(r.data.tags["harness.key"] for r in runs); print(dict(keys), [len(r.data.metrics) for r in runs])
raise SystemExit(not (len(keys) == 3 and set(keys.values()) == {1} and all("loss_d" in r.data.metrics for r in runs)))
PY
