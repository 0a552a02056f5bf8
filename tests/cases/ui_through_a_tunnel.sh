#!/usr/bin/env bash
# needs: long
# MLflow's page through ssh -L with another local port, through localhost instead of 127.0.0.1, and a port that is taken.
# Expected: page and its requests are answered under every name of this machine; a taken port is one sentence.
. "$(dirname "$0")/prelude.bash"
"$PY" -m http.server 5057 --bind 127.0.0.1 >/dev/null 2>&1 & other=$!
sleep 2; timeout 200 "$HARNESS" ui --port 5057 >out 2>&1; code=$?; kill $other; grep -A1 '^error' out; bad=""
[ $code = 2 ] && grep -q "5057 is in use" out || bad="$bad [taken port: exit code $code]"
"$HARNESS" ui --port 5058 >out 2>&1 & ui=$!
for i in $(seq 150); do sleep 2; kill -0 $ui 2>/dev/null || break; curl -s --noproxy "*" -o /dev/null http://127.0.0.1:5058/health && break; done
ask() { curl -s -m 60 --noproxy "*" -o /dev/null -w '%{http_code}' -X POST -H 'Content-Type: application/json' -d '{"max_results": 5}' -H "Host: $1" -H "Origin: $2" http://127.0.0.1:5058/ajax-api/2.0/mlflow/experiments/search; }
for pair in "127.0.0.1:5058 http://127.0.0.1:5058" "localhost:5058 http://localhost:5058" "localhost:8080 http://localhost:8080" "127.0.0.1:8080 http://127.0.0.1:8080"; do set -- $pair
  got=$(ask "$1" "$2"); echo "Host $1, Origin $2: $got"; [ "$got" = 200 ] || bad="$bad [$2: $got]"; done
evil=$(ask evil.example.com:5058 http://evil.example.com); echo "evil.example.com: $evil"; [ "$evil" = 403 ] || bad="$bad [evil: $evil]"
kill $ui; wait $ui 2>/dev/null; tail -3 out
[ -z "$bad" ] && pass "all of this machine's names, and no other" || fail "$bad"
