#!/usr/bin/env bash
# Microscopes and scanners store 12 bits in 16-bit files (0..4095), and label tools 0..255 in 32-bit ones: taken as full 16 bits they are
# nearly black, and a GAN learns black. Expected: a line (or a refusal) when a whole set uses a small part of its range; 32-bit integers, like
# floating point ones, have no known range.
. "$(dirname "$0")/prelude.bash"
study photos "channels = 1"
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0)
for name in "twelve", "int32": pathlib.Path(name).mkdir()
for i in range(30):
    Image.fromarray(rng.integers(0, 4096, (40, 40)).astype(np.uint16)).save(f"twelve/{i:03}.png")
    Image.fromarray(rng.integers(0, 256, (40, 40)).astype(np.int32)).save(f"int32/{i:03}.tif")
PY
bad=""
for set in twelve int32; do
  "$HARNESS" data prepare photos --data $set >out 2>&1; code=$?; "$HARNESS" data info photos --data $set >>out 2>&1; echo "--- $set (exit code $code)"; cat out
  D=$set "$PY" - <<'PY' || { grep -qi "range\|dark\|bits" out || bad="$bad $set"; }
import json, glob, os, numpy as np
for f in glob.glob(os.environ["HARNESS_HOME"] + "/data/folder-*/images.npy"):
    x = np.load(f); print("   stored pixels: min", x.min(), "max", x.max()); dark = x.max() < 32
    m = json.load(open(os.path.dirname(f) + "/manifest.json")); print("   manifest:", set(m["converted"].values()))
import shutil; shutil.rmtree(os.environ["HARNESS_HOME"] + "/data"); raise SystemExit(dark)
PY
done
[ -z "$bad" ] && pass "seen, or said" || fail "nearly black images are trained on, and nobody says so:$bad"
