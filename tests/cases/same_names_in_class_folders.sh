#!/usr/bin/env bash
# held_out = 0.1 on a folder of folders whose files have the same names (id00001/0.png, id00002/0.png, ...): the hash is of the file's name
# without its folder, so whole columns go one way. Expected: about a tenth is held out.
. "$(dirname "$0")/prelude.bash"
study photos "held_out = 0.1"
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0)
for person in range(60):
    for k in range(5):
        p = pathlib.Path(f"people/id{person:05}/{k}.png"); p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (36, 36, 3), dtype=np.uint8)).save(p)
    p = pathlib.Path(f"one/id{person:05}/face.png"); p.parent.mkdir(parents=True, exist_ok=True); Image.fromarray(rng.integers(0, 255, (36, 36, 3), dtype=np.uint8)).save(p)
    p = pathlib.Path(f"three/id{person:05}"); p.mkdir(parents=True)
    for k in ("front", "left", "right"): Image.fromarray(rng.integers(0, 255, (36, 36, 3), dtype=np.uint8)).save(p / f"{k}.jpg")
PY
bad=""
for set in people one three; do
  "$HARNESS" data prepare photos --data $set >out 2>&1; code=$?; "$HARNESS" data info photos --data $set >>out 2>&1
  echo "--- $set (exit code $code): $(grep -m1 '^error\|^split' out)"; grep -A1 '^error' out | tail -1
  held=$(sed -n "s/^split .* \([0-9,]*\) held out.*/\1/p" out | head -1); n=$(find $set -type f | wc -l)
  if [ -z "$held" ]; then bad="$bad [$set: refused]"; else [ $((held * 100)) -lt $((n * 4)) ] || [ $((held * 100)) -gt $((n * 20)) ] && bad="$bad [$set: $held of $n instead of a tenth]"; fi
done
[ -z "$bad" ] && pass "about a tenth of each" || fail "$bad"
