#!/usr/bin/env bash
# make sweep TRAILS=3, make sweep study=celeba32, EPOCHS=5: a variable that the Makefile does not know is passed over, and the default study
# runs with its default budget. make hands it on (MAKEFLAGS, MAKEOVERRIDES), so it can be seen. (Tried with 'recipes', the quickest verb.)
# Expected: refused or said.
. "$(dirname "$0")/prelude.bash"
cp -r "$ROOT/Makefile" "$ROOT/tools" . && cp -r "$ROOT/search_spaces/recipes" search_spaces/
export HARNESS_NO_VENV=1; unset MAKEFLAGS MAKELEVEL       # the command line itself, in the environment that is there: nothing is installed
bad=""
for v in RECIPIE=svhn32 TRAILS=3 EPOCHS=5; do
  timeout 300 make -s recipes PYTHON="$PY" $v >out 2>&1; code=$?; name=${v%%=*}
  echo "--- make recipes $v: exit code $code; $(head -1 out | cut -c1-80)"
  grep -q "$name" out || bad="$bad $v"
done
timeout 300 make -s recipes PYTHON="$PY" RECIPE=svhn32 >out 2>&1 && head -1 out
[ -z "$bad" ] && pass "each is named" || fail "passed over in silence:$bad"
