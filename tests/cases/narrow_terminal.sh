#!/usr/bin/env bash
# needs: long
# A terminal of 20 by 5 (a phone, a split tmux pane), TERM=dumb, NO_COLOR, and none at all. Expected: runs, no traceback.
. "$(dirname "$0")/prelude.bash"
study photos; weights
command -v script >/dev/null || { echo "SKIP: needs script(1)"; exit 0; }
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
export HARNESS; bad=""
TERM=xterm timeout 400 script -qec "stty cols 20 rows 5; '$HARNESS' sweep photos --data photos --device cpu --trials 1" /dev/null >out 2>&1; a=$?; grep -q Traceback out && bad="$bad narrow"
TERM=dumb NO_COLOR=1 timeout 400 script -qec "'$HARNESS' sweep photos --data photos --device cpu --trials 2" /dev/null >out2 2>&1; b=$?; grep -q Traceback out2 && bad="$bad dumb"
timeout 800 "$HARNESS" sweep photos --data photos --device cpu --trials 3 >out3 2>&1 </dev/null; c=$?
echo "exit codes $a $b $c; colours in the dumb one: $(grep -c $'\x1b\[3[0-9]' out2)"
[ "$a$b$c" = 000 ] && [ -z "$bad" ] && pass "all three" || fail "$a $b $c $bad"
