#!/usr/bin/env bash
# needs: long
# TMPDIR with a long path, as batch systems set it for each job: multiprocessing's socket does not fit into 108 bytes.
# Expected: works (a shorter folder for the socket), or a sentence that names TMPDIR.
. "$(dirname "$0")/prelude.bash"
study photos; weights
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
export TMPDIR="$W/slurm/spool/job-0123456789/$(printf 'x%.0s' $(seq 60))"; mkdir -p "$TMPDIR"
timeout 800 "$HARNESS" sweep photos --data photos --device cpu --trials 1 >out 2>&1; code=$?; tail -5 out
[ $code = 0 ] && pass "the sweep ran"
grep -q TMPDIR out && pass "refused, and TMPDIR is named"
fail "exit code $code: $(grep -i 'error\|AF_UNIX' out | tail -1)"
