#!/usr/bin/env bash
# needs: network
# make -j2 with two goals (or MAKEFLAGS=-j2, or two terminals) on a fresh clone: two processes make .venv and install into it at once.
# Expected: one waits for the other.
. "$(dirname "$0")/prelude.bash"
mkdir c && cp -r "$ROOT/harness" "$ROOT/tools" "$ROOT/pyproject.toml" "$ROOT/constraints.txt" "$ROOT/Makefile" c/ && cd c
"$PY" - <<'PY'
import re, pathlib
p = pathlib.Path("pyproject.toml"); t = p.read_text()
t = re.sub(r"\ndependencies = \[.*?\n\]\n", "\ndependencies = [\"click\", \"psutil\", \"numpy\", \"rich\", \"jinja2\", \"pydantic\", \"tomli-w\", \"filelock\", \"SQLAlchemy\", \"pillow\"]\n", t, count=1, flags=re.S); p.write_text(t)
pathlib.Path("constraints.txt").write_text("")
PY
timeout 400 make -j2 recipes reconcile >out 2>&1; grep -v '^WARNING' out | tail -15
n=$(grep -c "^creating .venv" out)
grep -q "Errno\|No module named pip\|installing failed\|returned non-zero\|no ensurepip" out && fail "'creating .venv' $n times; $(grep -m1 'Errno\|No module named pip\|installing failed\|returned non-zero\|no ensurepip' out)"
[ "$n" -gt 1 ] && fail "two processes made .venv at once ($n times 'creating .venv'); this time it went well"
pass "made once"
