#!/usr/bin/env bash
# HARNESS_HOME (or the clone, for runs/ lies in it) below a folder whose name has a space, %20, #, ?, ; or letters beyond ASCII: cloud drives, URL-encoded
# downloads. Expected: both databases are in HARNESS_HOME and nowhere else; or one sentence that refuses such a name.
. "$(dirname "$0")/prelude.bash"
weights; mv home plain; bad=""; i=0
for name in "My Drive #1; Bücher+" "50%20off" "what?x=1"; do
  i=$((i+1)); mkdir -p "$W/$i/$name/home"; [ -d plain/weights ] && cp -rl plain/weights "$W/$i/$name/home/"
  HARNESS_HOME="$W/$i/$name/home" timeout 400 "$HARNESS" doctor >out 2>&1; code=$?
  echo "--- '$name': exit code $code"; grep 'Databases\|Error' out | tail -1 | cut -c1-200; (cd "$W/$i" && find . -name '*.db' -o -type f -size +20k -not -path '*/weights/*' | sort)
  grep -q Traceback out && bad="$bad ['$name': a traceback: $(grep Error out | tail -1)]"
  [ "$(ls "$W/$i" | wc -l)" = 1 ] || bad="$bad ['$name': written beside it: $(cd "$W/$i"; ls | grep -vxF "$name" | tr '\n' ' ')]"
  [ $code = 0 ] && { [ -s "$W/$i/$name/home/optuna.db" ] && [ -s "$W/$i/$name/home/mlflow.db" ] || bad="$bad ['$name': no databases in HARNESS_HOME]"; }
done
[ -z "$bad" ] && pass "in HARNESS_HOME, or refused" || fail "$bad"
