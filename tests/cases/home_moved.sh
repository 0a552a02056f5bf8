#!/usr/bin/env bash
# needs: long
# runs/ (HARNESS_HOME) is moved: the clone is renamed, or a server's folder copied to a laptop. Then one trial more, and MLflow's page.
# Expected: goes on in the new place; pictures of old and new trials are found there; nothing is written to the old place.
. "$(dirname "$0")/prelude.bash"
study photos; weights
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
timeout 800 "$HARNESS" sweep photos --data photos --device cpu --trials 1 >out 2>&1 || { tail -3 out; fail "first sweep"; }
mv home moved; export HARNESS_HOME=$W/moved
timeout 800 "$HARNESS" sweep photos --data photos --device cpu --trials 2 >out 2>&1; code=$?; echo "exit code $code"; grep -i 'mlflow\|error' out
bad=""; [ $code = 0 ] || bad="$bad [exit code $code]"
[ -e home ] && { echo "the old place is there again: $(find home -type f | wc -l) files, such as $(find home -type f | head -1)"; bad="$bad [written to the old place]"; }
"$PY" - <<'PY' || bad="$bad [MLflow does not find the pictures of some trials]"
import os, mlflow
h = os.environ["HARNESS_HOME"]; c = mlflow.MlflowClient(f"sqlite:///{h}/mlflow.db"); e = c.get_experiment_by_name("photos"); bad = 0
for r in c.search_runs([e.experiment_id]):
    if r.data.tags.get("role") == "trial":
        n = len(c.list_artifacts(r.info.run_id)); print("trial", r.data.tags["trial"], ":", n, "artifacts at", r.info.artifact_uri.replace(os.path.dirname(h), "W")); bad += n == 0
raise SystemExit(bool(bad))
PY
[ -z "$bad" ] && pass "goes on in the new place" || fail "$bad"
