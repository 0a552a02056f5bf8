#!/usr/bin/env bash
# needs: long
# kill -9 while the first start makes runs/mlflow.db: does the same command continue afterwards?
. "$(dirname "$0")/prelude.bash"
study photos; weights
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
kids() { for c in $(pgrep -P "$1"); do kids "$c"; echo "$c"; done; }
for at in 1 400000 900000; do
  rm -f home/*.db* home/.*db*
  "$HARNESS" sweep photos --data photos --device cpu --trials 1 >one 2>&1 & p=$!
  while kill -0 $p 2>/dev/null; do
    size=$(stat -c %s home/mlflow.db* 2>/dev/null | sort -n | tail -1); [ "${size:-0}" -ge $at ] && break; sleep 0.02
  done
  kill -9 $p $(kids $p) 2>/dev/null; wait $p 2>/dev/null
  echo "killed at ${size:-0} bytes"
  timeout 400 "$HARNESS" doctor >two 2>&1; code=$?
  grep -q "^ok .*Databases" two || { tail -2 two; fail "exit code $code: the databases do not work after a kill at $at bytes"; }
done
timeout 600 "$HARNESS" sweep photos --data photos --device cpu --trials 1 >two 2>&1 || { tail -3 two; fail "the same command does not continue"; }
pass "the same command continues"
