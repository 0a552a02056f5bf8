#!/usr/bin/env bash
# needs: long
# One Optuna database shared with other people's studies (HARNESS_STORAGE). studies, reconcile and report must leave theirs alone and not stumble.
. "$(dirname "$0")/prelude.bash"
"$PY" - <<'PY'
import optuna
s = optuna.create_study(storage="sqlite:///shared.db", study_name="Theirs: résumé/2", directions=["minimize", "maximize"])
s.optimize(lambda t: (t.suggest_float("x", 0, 1), 1.0), n_trials=2); s.ask(); s.set_user_attr("spec", "not ours")
optuna.create_study(storage="sqlite:///shared.db", study_name="empty")
PY
export HARNESS_STORAGE="sqlite:///$W/shared.db"; bad=""
for verb in studies reconcile "report empty" "sweep empty"; do timeout 200 "$HARNESS" $verb >out 2>&1; code=$?; echo "--- $verb: exit code $code"; tail -4 out; grep -q Traceback out && bad="$bad [$verb: $(grep 'Error' out | tail -1)]"; done
"$PY" -c "
import optuna; s = optuna.load_study(storage='sqlite:///shared.db', study_name='Theirs: résumé/2'); print([t.state.name for t in s.trials]); raise SystemExit([t.state.name for t in s.trials] != ['COMPLETE','COMPLETE','RUNNING'])" || bad="$bad [their trials were changed]"
[ -z "$bad" ] && pass "left alone" || fail "$bad"
