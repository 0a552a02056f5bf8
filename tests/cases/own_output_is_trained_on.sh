#!/usr/bin/env bash
# needs: long
# cd photos; harness sweep photos --data . : runs/ and reports/ lie below DATA, so sample grids and plots become training images.
# Expected: the harness's own folders are left out (or said); the same command continues.
. "$(dirname "$0")/prelude.bash"
mkdir mine && cd mine && mkdir search_spaces; study photos; weights; mkdir -p runs; [ -d "$HARNESS_HOME/weights" ] && cp -r "$HARNESS_HOME/weights" runs/; unset HARNESS_HOME
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0)
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"{i:03}.png")
PY
timeout 800 "$HARNESS" sweep photos --data . --device cpu --trials 1 >out 2>&1 || { tail -3 out; fail "first sweep"; }
timeout 800 "$HARNESS" sweep photos --data . --device cpu --trials 2 >out 2>&1; code=$?; grep -A1 '^error' out
"$PY" -c "
import json, glob
for f in sorted(glob.glob('runs/data/*/manifest.json')): print(f.split('/')[2], json.load(open(f))['shape'][0], 'images')"
[ $code = 0 ] && pass "goes on with the 40 images"
fail "exit code $code: the same command does not continue; what the harness wrote is taken for images"
