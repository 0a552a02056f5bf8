#!/usr/bin/env bash
# needs: long
# The images are moved to another disk (other path, other times) between two starts. Expected: the sweep goes on: the pixels are the same.
. "$(dirname "$0")/prelude.bash"
study photos; weights
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
timeout 800 "$HARNESS" sweep photos --data photos --device cpu --trials 1 >out 2>&1 || { tail -3 out; fail "first"; }
mv photos elsewhere; touch elsewhere/*; chmod -R a-w elsewhere
timeout 800 "$HARNESS" sweep photos --data elsewhere --device cpu --trials 2 >out 2>&1; code=$?; tail -2 out
[ $code = 0 ] && pass "goes on, from a read-only folder" || fail "exit code $code"
