#!/usr/bin/env bash
# needs: long
# A choice is added to a searched parameter of a started study. Expected: refused, old and new values named, and what to do.
. "$(dirname "$0")/prelude.bash"
study photos; weights
cat >> search_spaces/photos.toml <<'TOML'
[space.activation_g]
type = "categorical"
choices = ["relu", "leaky_relu"]
TOML
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
timeout 800 "$HARNESS" sweep photos --data photos --device cpu --trials 1 >out 2>&1 || { tail -3 out; fail "first"; }
sed -i 's/"relu", "leaky_relu"/"leaky_relu", "relu"/' search_spaces/photos.toml
timeout 800 "$HARNESS" sweep photos --data photos --device cpu --trials 2 >out 2>&1; code=$?; grep -A3 '^error' out
[ $code = 2 ] && grep -q "space.activation_g.choices" out && pass "refused" || fail "exit code $code"
