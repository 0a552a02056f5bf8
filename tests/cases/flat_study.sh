#!/usr/bin/env bash
# needs: long
# All trials alike: one choice, low = high, nine trials. Expected: sweep and report end well; importances say nothing.
. "$(dirname "$0")/prelude.bash"
study photos; weights
sed -i 's/^high = 1e-3/high = 1e-4/; s/^kimg = .*/kimg = 0.05/; s/^rungs = .*/rungs = [0.03]/' search_spaces/photos.toml
cat >> search_spaces/photos.toml <<'TOML'
[space.bn]
type = "categorical"
choices = ["paper"]
[pruner]
name = "none"
TOML
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
timeout 880 "$HARNESS" sweep photos --data photos --device cpu --trials 9 >out 2>&1; code=$?; tail -3 out
grep -q Traceback out && fail "a traceback: $(grep 'Error' out | tail -1)"
[ $code = 0 ] && [ -s reports/photos/report.md ] && pass "report written; lines with nan: $(grep -icw nan reports/photos/report.md)" || fail "exit code $code: $(grep -m1 '^error' out)"
