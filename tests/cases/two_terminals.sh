#!/usr/bin/env bash
# needs: long
# The same sweep started in two terminals at once. Expected: both help, or one is refused; the budget is kept, each trial runs once.
. "$(dirname "$0")/prelude.bash"
study photos; weights
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
timeout 860 "$HARNESS" sweep photos --data photos --device cpu --trials 4 >one 2>&1 & a=$!
timeout 860 "$HARNESS" sweep photos --data photos --device cpu --trials 4 >two 2>&1 & b=$!
wait $a; x=$?; wait $b; y=$?; tail -1 one; tail -1 two
"$PY" - <<'PY' && [ $x = 0 ] && [ $y = 0 ] && pass "four trials, each with one run" || fail "exit codes $x $y; see above"
import os, optuna, mlflow, collections
h = os.environ["HARNESS_HOME"]; optuna.logging.set_verbosity(40)
s = optuna.load_study(storage=f"sqlite:///{h}/optuna.db", study_name="photos"); states = collections.Counter(t.state.name for t in s.trials)
c = mlflow.MlflowClient(f"sqlite:///{h}/mlflow.db"); e = c.get_experiment_by_name("photos")
keys = collections.Counter(r.data.tags.get("harness.key", "?") for r in c.search_runs([e.experiment_id]))
print(dict(states), "runs a key:", set(keys.values()), len(keys)); raise SystemExit(not (states["COMPLETE"] + states["PRUNED"] == 4 and set(keys.values()) == {1}))
PY
