#!/usr/bin/env bash
# needs: long
# MLFLOW_TRACKING_URI=./mlruns, as most tutorials have it. Expected: one sentence, before anything is trained.
. "$(dirname "$0")/prelude.bash"
study photos
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
bad=""
for uri in ./mlruns "file://$W/mlruns" databricks; do
MLFLOW_TRACKING_URI=$uri timeout 300 "$HARNESS" sweep photos --data photos --device cpu --trials 1 >out 2>&1; code=$?
echo "--- $uri: exit code $code"; grep -A1 '^error' out
grep -q Traceback out && bad="$bad $uri(traceback)"; [ $code = 0 ] && [ "$uri" = databricks ] && bad="$bad $uri(ran)"; grep -q "starts:" out && [ $code != 0 ] && bad="$bad $uri(trained first)"
done
[ -z "$bad" ] && pass "each is answered with a sentence" || fail "$bad"
