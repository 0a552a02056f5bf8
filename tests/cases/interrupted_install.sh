#!/usr/bin/env bash
# Ctrl-C while make installs (several GB of PyTorch). Expected: no traceback; the next make goes on.
. "$(dirname "$0")/prelude.bash"
mkdir c && cp -r "$ROOT/harness" "$ROOT/tools" "$ROOT/pyproject.toml" "$ROOT/constraints.txt" c/ && cd c
python3 -m venv --without-pip .venv && site=$(ls -d .venv/lib/python3*/site-packages) && mkdir "$site/pip"     # a pip that takes long
printf 'import time, sys\nprint("Collecting torch", flush=True)\ntime.sleep(60)\n' > "$site/pip/__main__.py"; : > "$site/pip/__init__.py"
"$PY" - <<'PY'
import subprocess, signal, time, os
p = subprocess.Popen(["python3", "tools/bootstrap.py", "setup"], stdout=open("out", "w"), stderr=subprocess.STDOUT, start_new_session=True)
time.sleep(4); os.killpg(p.pid, signal.SIGINT); print("exit code", p.wait(20))
PY
cat out | tail -3
n=$(grep -c Traceback out); sub=$(grep -c 'tools/bootstrap.py' out)
[ "$sub" = 0 ] && pass "no traceback of the harness"
fail "a traceback of the harness ($(grep -c . out) lines)"
