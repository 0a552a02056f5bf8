#!/usr/bin/env bash
# needs: root long
# docker run --user 54321: no line in /etc/passwd, HOME missing. Expected: the sweep runs; nothing asks who the user is. (As root.)
export TMPDIR=/tmp  # another user must reach it
. "$(dirname "$0")/prelude.bash"
other() {  # UID VERB...: the harness as another user, who may not be able to reach this one's Python
  local uid=$1 py=$PY site; shift; site=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  setpriv --reuid "$uid" --regid "$uid" --clear-groups env "$py" -c "" 2>/dev/null || py=/usr/bin/python3
  setpriv --reuid "$uid" --regid "$uid" --clear-groups env -i PATH=/usr/bin:/bin HOME=/nonexistent HARNESS_HOME="$HARNESS_HOME" HARNESS_NO_VENV=1 \
    PYTHONPATH="$ROOT:$site" "$py" -m harness "$@"
}
[ "$(id -u)" = 0 ] || { echo "SKIP: needs root to become another user"; exit 0; }
study photos; weights
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
chown -R 54321:54321 "$W"; chmod 755 "$W"
other 54321 sweep photos --data photos --device cpu --trials 1 >out 2>&1; code=$?
tail -4 out; [ $code = 0 ] && grep -q '1 of 1 trials finished' out && ! grep -q Traceback out && pass "ran as a user without name and home"
fail "exit code $code: $(grep -m1 'Error\|^error' out)"
