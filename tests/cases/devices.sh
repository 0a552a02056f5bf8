#!/usr/bin/env bash
# DEVICE=mps, cuda:1, 0, gpu; CUDA_VISIBLE_DEVICES='' with DEVICE=cuda. Expected: a sentence each; nothing falls back in silence.
. "$(dirname "$0")/prelude.bash"
study photos
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
bad=""
for d in mps cuda:1 0 gpu CPU; do timeout 300 "$HARNESS" sweep photos --data photos --device $d >out 2>&1; code=$?; echo "$d: $code $(grep -A1 '^error' out | tr '\n' ' ')"; [ $code = 2 ] || bad="$bad $d"; done
CUDA_VISIBLE_DEVICES= timeout 300 "$HARNESS" sweep photos --data photos --device cuda >out 2>&1; code=$?; echo "CUDA_VISIBLE_DEVICES= : $code $(grep -A1 '^error' out | tr '\n' ' ')"; [ $code = 2 ] || bad="$bad hidden"
"$PY" -c "
import os
from harness.machine.processes import visible_gpus
for v in ('0,-1,1', 'MIG-aaaa,MIG-bbbb', ' 2 , 3 ', '0,0'):
    os.environ['CUDA_VISIBLE_DEVICES'] = v; print('visible_gpus of', repr(v), '->', visible_gpus())"
[ -z "$bad" ] && pass "each refused" || fail "$bad"
