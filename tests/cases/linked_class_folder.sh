#!/usr/bin/env bash
# ImageFolder layout whose class folders are symbolic links (usual on clusters): their images are passed over in silence.
# Expected: followed (once, without loops), or named.
. "$(dirname "$0")/prelude.bash"
study photos
"$PY" - <<'PY'
import numpy as np, pathlib, os
from PIL import Image
rng = np.random.default_rng(0)
def fill(folder, n):
    folder.mkdir(parents=True)
    for i in range(n): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i:03}.png")
fill(pathlib.Path("store/cats"), 30); fill(pathlib.Path("photos/dogs"), 20)
os.symlink(pathlib.Path("store/cats").resolve(), "photos/cats")
pathlib.Path("only").mkdir(); os.symlink(pathlib.Path("store/cats").resolve(), "only/cats")
os.symlink(pathlib.Path("photos/dogs/000.png").resolve(), "photos/dogs/link.png")     # links to files are followed
os.symlink("/nowhere/at/all.png", "photos/dogs/broken.png")
PY
"$HARNESS" data prepare photos --data photos >out 2>&1; cat out
"$HARNESS" data prepare photos --data only >out2 2>&1; echo "--- only links:"; cat out2
used=$(sed -n "s/^images *\([0-9,]*\) of.*/\1/p" out | head -1)
[ "$used" = 51 ] && grep -q "30" <(sed -n 's/.*preparing images: \([0-9]*\).*/\1/p' out2; cat out2) && pass "links are followed: $used images"
grep -qi "link" out && grep -qi "link" out2 && pass "links are not followed, and that is said"
fail "$used of 51 images are used; not a word of the linked folder (a folder of nothing but links: '$(head -1 out2)')"
