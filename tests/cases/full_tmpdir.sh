#!/usr/bin/env bash
# needs: long
# TMPDIR on a full or unwritable file system, or gone. Expected: runs (TMPDIR is not needed), or a sentence that names it.
. "$(dirname "$0")/prelude.bash"
study photos; weights
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
bad=""
TMPDIR=/nonexistent/tmp timeout 800 "$HARNESS" sweep photos --data photos --device cpu --trials 1 >out 2>&1; a=$?; echo "gone: $a $(grep -m1 '^error' out)"; [ $a = 0 ] || grep -q TMPDIR out || bad="$bad gone($(grep -m1 'rror' out))"
if [ "$(id -u)" = 0 ] && command -v unshare >/dev/null; then
mkdir full
cat > inner.sh <<IN
mount -t tmpfs -o size=64k none "$W/full" && dd if=/dev/zero of="$W/full/f" bs=1k count=100 2>/dev/null
TMPDIR="$W/full" timeout 800 "$HARNESS" sweep photos --data photos --device cpu --trials 2
IN
if unshare -m true 2>/dev/null; then unshare -m bash inner.sh >out 2>&1; b=$?; echo "full: $b $(grep -m1 'rror' out)"; tail -2 out; [ $b = 0 ] || grep -qi "TMPDIR\|$W/full" out || bad="$bad full($(grep -m1 'rror' out))"; else echo "no mount namespaces here: not tried on a full one"; fi
fi
[ -z "$bad" ] && pass "runs, or says it" || fail "$bad"
