#!/usr/bin/env bash
# Copies and thumbnails that tools leave in hidden folders (.ipynb_checkpoints of Jupyter, .thumbnails, @eaDir of a Synology,
# .Trash-1000) become training images without a word; some of them are doubles, or 32 px thumbnails of photographs.
# Expected: left out, or said.
. "$(dirname "$0")/prelude.bash"
study photos
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0)
root = pathlib.Path("photos"); root.mkdir()
for folder in (".ipynb_checkpoints", ".thumbnails", ".Trash-1000/files"): (root / folder).mkdir(parents=True)
for i in range(30):
    picture = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)); picture.save(root / f"{i:03}.jpg")
    (root / f"@eaDir/{i:03}.jpg").mkdir(parents=True)
    small = picture.resize((32, 32)); small.save(root / f"@eaDir/{i:03}.jpg/SYNOPHOTO_THUMB_M.jpg")
    if i < 10: picture.save(root / f".ipynb_checkpoints/{i:03}-checkpoint.jpg"); small.save(root / f".thumbnails/{i:03}.png")
    if i < 5: picture.save(root / f".Trash-1000/files/{i:03}.jpg")
PY
"$HARNESS" data prepare photos --data photos >out 2>&1; cat out
used=$(sed -n "s/^images *\([0-9,]*\) of.*/\1/p" out | head -1)
[ "$used" = 30 ] && pass "the 30 photographs alone are used"
grep -qi "checkpoints\|hidden\|eaDir" out && pass "$used used, and hidden folders are named"
fail "$used images are used where a person has 30: those of hidden folders are trained on, and nobody says so"
