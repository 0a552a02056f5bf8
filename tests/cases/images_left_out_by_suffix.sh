#!/usr/bin/env bash
# Photographs whose names end in .jfif, .jpe, .avif, .heic or in nothing are not read, and nobody says so.
# Expected (docs/guides/images.md: 'left out, and reported'): used, or named in what 'data prepare' and 'data info' print.
. "$(dirname "$0")/prelude.bash"
study photos
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0)
root = pathlib.Path("photos"); root.mkdir()
def picture(): return Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
for i in range(30): picture().save(root / f"a{i:03}.jpg")
for i in range(12): picture().save(root / f"b{i:03}.jfif", format="JPEG")
for i in range(4): picture().save(root / f"c{i:03}.jpe", format="JPEG")
for i in range(3): picture().save(root / f"d{i:03}", format="PNG")
try:
    for i in range(5): picture().save(root / f"e{i:03}.avif")
except Exception: (root / "e000.avif").write_bytes(b"\0\0\0\x1cftypavif" + bytes(100))
(root / "f000.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
(root / "notes.txt").write_text("not a picture")
PY
n=$(ls photos | grep -vc notes)
"$HARNESS" data prepare photos --data photos >out 2>&1 || { cat out; fail "prepare ended with an error"; }
"$HARNESS" data info photos --data photos >>out 2>&1
cat out
used=$(sed -n "s/^images *\([0-9,]*\) of.*/\1/p" out | head -1)
missing=0; for s in jfif jpe avif heic d000; do grep -q "$s" out || { echo "not a word of: $s"; missing=1; }; done
[ "$used" = "$n" ] && pass "all $n are used"
[ $missing = 0 ] && pass "$used of $n used, the others are named"
fail "$used of $n pictures are used, and nobody says that others were there"
