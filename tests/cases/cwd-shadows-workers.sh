#!/usr/bin/env bash
# needs: long
# A folder that holds harness/ (another clone, another version) or a module such as optuna.py: do workers of the installed
# harness import it, where the supervisor does not?  Python 3.11's forkserver is `python -c`, whose sys.path begins with
# the current folder.
. "$(dirname "$0")/prelude.bash"
printf '[data]\nsource = "mnist"\nimage_size = 32\nchannels = 1\n[space.lr_g]\ntype = "float"\nlow = 1e-4\nhigh = 4e-3\n[budget]\ntrials = 1\nkimg = 0.3\n[scoring.final]\nmetric = "fid"\nextractor = "mobilenet-v2"\nsamples = 30\nreference = 30\n[scoring.rung]\nmetric = "fid"\nextractor = "mobilenet-v2"\nsamples = 30\nreference = 30\n' > search_spaces/s.toml
cat > optuna.py <<T
import os, sys
open("$W/marker", "a").write(f"code of the current folder ran in pid {os.getpid()}: {sys.argv} {sys.orig_argv[:4]}\n")
sys.path.remove("") if "" in sys.path else None
del sys.modules["optuna"]
import optuna  # go on with the real one
T
"$HARNESS" sweep s > out 2>&1 & P=$!
for _ in $(seq 1200); do [ -s marker ] && break; grep -q "trial 0\|error:" out && break; kill -0 $P 2>/dev/null || break; sleep 0.1; done
kids() { for c in $(pgrep -P $1); do kids $c; echo $c; done; }
K="$(kids $P)"; kill -9 $K $P 2>/dev/null; wait 2>/dev/null
if [ -s marker ]; then cut -c1-160 marker; fail "what lies in the current folder is executed by workers"; else pass "not executed"; fi
