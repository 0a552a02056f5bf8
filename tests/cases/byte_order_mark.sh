#!/usr/bin/env bash
# Text files saved by Windows' Notepad, PowerShell or Excel begin with a byte order mark: a study file, and CelebA's partition (txt or csv).
# Expected: read as they are meant (or a sentence on the mark).
. "$(dirname "$0")/prelude.bash"
study photos "held_out = 0.3"; sed 's/source = "folder"/source = "celeba"/' search_spaces/photos.toml > search_spaces/faces.toml
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(1, 41): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:06}.jpg")
lines = [f"{i:06}.jpg {0 if i < 31 else 2}" for i in range(1, 41)]
pathlib.Path("photos/list_eval_partition.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
p = pathlib.Path("search_spaces/photos.toml"); p.write_bytes(b"\xef\xbb\xbf" + p.read_bytes().replace(b"\n", b"\r\n"))
PY
bad=""
"$HARNESS" data prepare photos --data photos >out 2>&1; head -2 out
grep -q "^error" out && ! grep -qi "byte order\|BOM" out && bad="$bad [study: $(head -1 out)]"
"$HARNESS" data prepare faces --data photos >out 2>&1; grep '^error\|^split' out
grep -q "30 to train on, 10 held out" out || grep -qi "byte order\|BOM" out || bad="$bad [partition: $(head -1 out)]"
[ -z "$bad" ] && pass "read, or said" || fail "$bad"
