#!/usr/bin/env bash
# needs: long
# A password in MLFLOW_TRACKING_URI: is it in what the sweep prints, keeps or shows to `ps`?
. "$(dirname "$0")/prelude.bash"
study photos; weights
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
kids() { for c in $(pgrep -P "$1"); do kids "$c"; echo "$c"; done; }
port=$("$PY" -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])")
MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false "$PY" -m mlflow server --workers 1 --host 127.0.0.1 --port $port \
  --backend-store-uri "sqlite:///$W/m.db" --artifacts-destination "$W/art" >server.log 2>&1 & s=$!
for _ in $(seq 240); do curl -s --noproxy "*" -m 2 http://127.0.0.1:$port/health >/dev/null && break; sleep 1; done
MLFLOW_TRACKING_URI=http://joe:hunter2secret@127.0.0.1:$port timeout 600 "$HARNESS" sweep photos --data photos --device cpu --trials 1 >out 2>&1 & p=$!
while kill -0 $p 2>/dev/null; do ps -eo args | grep -v grep | grep hunter2secret >>shown; sleep 0.5; done
wait $p; code=$?; kill $(kids $s) $s; found=$(grep -rl hunter2secret out home m.db art reports shown)
[ $code = 0 ] || { tail -3 out; fail "exit code $code"; }
[ -z "$found" ] && pass "nowhere" || fail "the password is in $found"
