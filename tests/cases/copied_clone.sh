#!/usr/bin/env bash
# needs: network
# A clone that is copied or moved with its .venv: the commands in .venv/bin still belong to the first place.
# Expected: they say so instead of running that one's code, and make creates .venv again.
. "$(dirname "$0")/prelude.bash"
mkdir a && cp -r "$ROOT/harness" "$ROOT/search_spaces" "$ROOT/tools" "$ROOT/pyproject.toml" "$ROOT/README.md" "$ROOT/LICENSE" a/
# As few dependencies as the command line needs; none of them is pinned.
"$PY" - <<'PY'
import re, pathlib
p = pathlib.Path("a/pyproject.toml")
few = '["click", "pydantic", "psutil", "numpy", "rich", "filelock"]'
p.write_text(re.sub(r"\ndependencies = \[.*?\n\]\n", f"\ndependencies = {few}\n", p.read_text(), count=1, flags=re.S))
pathlib.Path("a/constraints.txt").write_text("")
PY
unset HARNESS_NO_VENV PYTHONPATH
(cd a && python3 tools/bootstrap.py --version) >out 2>&1 || { tail -3 out; fail "could not set the case up"; }
cp -r a b
sed -i 's/^__version__ = .*/__version__ = "9.9.9-of-the-copy"/' b/harness/__init__.py
said=$(b/.venv/bin/harness --version 2>&1); echo "the copy's command: $said"
case "$said" in *9.9.9*) ;; *copy*setup*) ;; *) bad="the copy's command runs the other clone's code";; esac
mv a moved_away
made=$(cd b && python3 tools/bootstrap.py --version 2>&1 | tail -1); echo "make: $made"
after=$(b/.venv/bin/harness --version 2>&1 | tail -1); echo "the copy's command after make: $after"
case "$made$after" in *9.9.9*9.9.9*) ;; *) bad="${bad:+$bad; }make repairs nothing";; esac
[ -z "${bad:-}" ] && pass "noticed" || fail "$bad"
