#!/usr/bin/env bash
# needs: long
# kill -9 (or the OOM killer) of the process that workers are forked from, while one is being started: a sentence, or a
# Python traceback?  Restarting works in either case; nothing is lost.
. "$(dirname "$0")/prelude.bash"
printf '[data]\nsource = "mnist"\nimage_size = 32\nchannels = 1\n[space.lr_g]\ntype = "float"\nlow = 1e-4\nhigh = 4e-3\n[budget]\ntrials = 1\nkimg = 0.3\n[scoring.final]\nmetric = "fid"\nextractor = "mobilenet-v2"\nsamples = 30\nreference = 30\n[scoring.rung]\nmetric = "fid"\nextractor = "mobilenet-v2"\nsamples = 30\nreference = 30\n' > search_spaces/s.toml
"$HARNESS" sweep s > out 2>&1 & P=$!
seen=" "; n=0
for _ in $(seq 1800); do
  kill -0 $P 2>/dev/null || break
  for N in $(pgrep -P $P -f multiprocessing.forkserver); do
    case "$seen" in *" $N "*) ;; *) sleep "${WAIT:-1.5}"; kill -9 $N 2>/dev/null; seen="$seen$N "; n=$((n+1));; esac
  done
  [ $n -ge 6 ] && break; sleep 0.05
done
kids() { for c in $(pgrep -P $1); do kids $c; echo $c; done; }
kill -0 $P 2>/dev/null && { K="$(kids $P)"; sleep 3; kill -9 $K $P 2>/dev/null; }; wait $P; rc=$?; echo "killed $n nurseries"
if grep -q Traceback out; then tail -1 out; fail "a traceback, exit code $rc"; else tail -2 out; pass "a sentence, or continued"; fi
