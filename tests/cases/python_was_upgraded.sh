#!/usr/bin/env bash
# After the Python that made .venv is gone (brew upgrade, apt, pyenv), .venv/bin/python is a dangling link.
# Expected: make setup makes .venv anew, or says what to do; no traceback.
. "$(dirname "$0")/prelude.bash"
mkdir c && cp -r "$ROOT/harness" "$ROOT/tools" "$ROOT/pyproject.toml" "$ROOT/constraints.txt" c/
cd c && mkdir -p .venv/bin && ln -s /opt/gone/python3.11 .venv/bin/python && ln -s python .venv/bin/python3
printf 'home = /opt/gone\nversion = 3.11.1\n' > .venv/pyvenv.cfg
# No index: what is tested is the way up to asking it.
PIP_NO_INDEX=1 PIP_CONFIG_FILE=/dev/null timeout 300 python3 tools/bootstrap.py recipes >out 2>&1; code=$?; tail -4 out
grep -q Traceback out && fail "a traceback, exit code $code: $(tail -1 out)"
grep -q "creating .venv again: its Python is gone" out && grep -q "^error: pip gets nothing from the package index" out && pass "made anew, up to the index"
fail "exit code $code: $(tail -1 out)"
