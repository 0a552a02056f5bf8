#!/usr/bin/env bash
# DATA='~/photos' from a file of variables, from fish or from zsh, where no shell expands it after '='. Expected: the home folder's, or a sentence on ~.
. "$(dirname "$0")/prelude.bash"
study photos
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("home/photos").mkdir(parents=True)
for i in range(30): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"home/photos/{i:03}.png")
PY
HOME=$W/home "$HARNESS" data prepare photos --data '~/photos' >out 2>&1; code=$?; cat out
HOME=$W/home HARNESS_HOME='~/elsewhere' "$HARNESS" data prepare photos --data "$W/home/photos" >out2 2>&1; ls -d '~' 2>/dev/null && echo "HARNESS_HOME: a folder named ~ was made here"
[ $code = 0 ] && [ ! -e '~' ] && pass "the home folder"
grep -qi "tilde\|expand" out && [ ! -e '~' ] && pass "said"
fail "$(head -1 out)$([ -e '~' ] && echo '; HARNESS_HOME made a folder whose name is ~')"
