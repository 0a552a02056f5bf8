#!/usr/bin/env bash
# harness ui --port 80: argparse lists all 64,512 allowed numbers.
# Expected: one line.
. "$(dirname "$0")/prelude.bash"
"$HARNESS" ui --port 80 >out 2>&1; code=$?
size=$(wc -c <out); cut -c1-200 out
[ $code = 2 ] && [ "$size" -lt 1000 ] && pass "exit code 2, $size bytes"
fail "exit code $code, a message of $size bytes"
