#!/usr/bin/env bash
# Escape sequences in a study's description: do they reach the terminal?
. "$(dirname "$0")/prelude.bash"
printf 'description = "a\\u001b[31mred\\u001b]0;title\\u0007"\n[data]\nsource = "mnist"\nimage_size = 32\nchannels = 1\n[space.lr_g]\ntype = "float"\nlow = 1e-4\nhigh = 4e-3\n[budget]\ntrials = 1\nkimg = 0.3\n[scoring.final]\nmetric = "fid"\nextractor = "mobilenet-v2"\nsamples = 30\nreference = 30\n[scoring.rung]\nmetric = "fid"\nextractor = "mobilenet-v2"\nsamples = 30\nreference = 30\n' > search_spaces/s.toml
"$HARNESS" studies > out 2>&1; cat -v out
if grep -q $'\x1b' out; then fail "they reach it"; else pass "they do not"; fi
