#!/usr/bin/env bash
# Study files that must be answered with a sentence (exit 2), not with a Python traceback.
. "$(dirname "$0")/prelude.bash"
base() { cat <<'T'
[data]
source = "mnist"
image_size = 32
channels = 1
[fixed]
ngf = 8
ndf = 8
[space.lr_g]
type = "float"
low = 1e-4
high = 4e-3
[space.activation_g]
type = "categorical"
choices = ["relu", "leaky_relu"]
[budget]
trials = 1
kimg = 1
[scoring.final]
metric = "fid"
extractor = "mobilenet-v2"
samples = 30
reference = 30
[scoring.rung]
metric = "fid"
extractor = "mobilenet-v2"
samples = 30
reference = 30
[sampler]
seed = SEED
T
}
{ python3 -c 'print("x = " + "["*3000 + "]"*3000)'; base; } | sed s/SEED/0/ > search_spaces/deep.toml
{ base | sed s/SEED/0/; printf '[space.slope_g]\ntype = "float"\nlow = 0.1\nhigh = 0.2\nwhen = { activation_g = [] }\n'; } > search_spaces/when.toml
base | sed "s/SEED/$(python3 -c 'print("9"*5000)')/" > search_spaces/digits.toml
base | sed 's/SEED/0/; s/high = 4e-3/high = 4e-3\nstep = inf/' > search_spaces/stepinf.toml
bad=0
for s in deep when digits stepinf; do
  timeout 120 "$HARNESS" sweep $s > out 2>&1; rc=$?
  if grep -q Traceback out; then echo "$s: traceback, rc $rc: $(tail -1 out | cut -c1-120)"; bad=1; else echo "$s: rc $rc $(tail -2 out | head -1| cut -c1-120)"; fi
done
[ $bad = 0 ] && pass "a sentence each" || fail "a traceback"
