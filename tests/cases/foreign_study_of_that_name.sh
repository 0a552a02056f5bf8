#!/usr/bin/env bash
# A shared Optuna database (HARNESS_STORAGE) already holds somebody's study of the same name, which maximises.
# Expected: refused. Never: FID maximised in silence.
. "$(dirname "$0")/prelude.bash"
study photos; weights
"$PY" - <<'PY'
import numpy as np, pathlib, optuna
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
study = optuna.create_study(storage="sqlite:///shared.db", study_name="photos", direction="maximize")
study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
PY
export HARNESS_STORAGE="sqlite:///$W/shared.db"
timeout 800 "$HARNESS" sweep photos --data photos --device cpu --trials 5 >out 2>&1; code=$?; tail -6 out
"$PY" -c "
import optuna; s = optuna.load_study(storage='sqlite:///shared.db', study_name='photos')
print('direction', s.direction.name, '; trials', [(t.number, t.state.name, t.value, sorted(t.params)) for t in s.trials])" | tee after
[ $code != 0 ] && grep -q "^error" out && ! grep -q "lr_g" after && pass "refused: $(grep -m1 '^error' out)"
fail "exit code $code: the harness put its trials into somebody else's study ($(cut -d';' -f1 after))"
