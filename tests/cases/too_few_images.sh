#!/usr/bin/env bash
# Fewer images than a batch, or than the scoring compares with. Expected: one sentence before anything is trained.
. "$(dirname "$0")/prelude.bash"
study photos
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0)
for n in 1, 15, 18:
    pathlib.Path(f"p{n}").mkdir()
    for i in range(n): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"p{n}/{i:03}.png")
PY
bad=""
for n in 1 15 18; do timeout 300 "$HARNESS" sweep photos --data p$n --device cpu >out 2>&1; code=$?; echo "--- $n images: exit code $code"; grep -A1 '^error' out; [ $code = 1 ] && grep -q "^error: $n usable" out || bad="$bad $n"; grep -q Traceback out && bad="$bad $n(traceback)"; done
[ -z "$bad" ] && pass "refused before training" || fail "$bad"
