#!/usr/bin/env bash
# A study is started on a zip; later the zip is unpacked and the folder given (or the other way). Same pictures, folders 'a' and 'a-1'.
# Expected: goes on; the order of the images is the same.
. "$(dirname "$0")/prelude.bash"
study photos
"$PY" - <<'PY'
import numpy as np, pathlib, zipfile
from PIL import Image
rng = np.random.default_rng(0)
for name in "a", "a-1", "A b":
    (pathlib.Path("photos") / name).mkdir(parents=True)
    for i in range(15): Image.fromarray(rng.integers(0, 255, (36, 36, 3), dtype=np.uint8)).save(f"photos/{name}/{i}.png")
with zipfile.ZipFile("photos.zip", "w") as z:
    for p in pathlib.Path("photos").rglob("*.png"): z.write(p, p.relative_to("photos"))
PY
one=$("$HARNESS" data prepare photos --data photos.zip 2>&1; "$HARNESS" data info photos --data photos.zip | sed -n 's/^fingerprint *//p')
two=$("$HARNESS" data prepare photos --data photos 2>&1; "$HARNESS" data info photos --data photos | sed -n 's/^fingerprint *//p')
a=$(echo "$one" | tail -1); b=$(echo "$two" | tail -1); echo "zip    $a"; echo "folder $b"
[ -n "$a" ] && [ "$a" = "$b" ] && pass "the same fingerprint"
fail "the same pictures have another fingerprint as a folder than as a zip: 'study was started on other images'"
