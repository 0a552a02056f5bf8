#!/usr/bin/env bash
# needs: long
# An MLflow address that answers 429 or 503 with "Retry-After: 3600", or sends a byte a second. Expected: a sentence within 90 s.
. "$(dirname "$0")/prelude.bash"
study photos; weights
"$PY" - <<'PY'
import numpy as np, pathlib
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir()
for i in range(40): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
PY
kids() { for c in $(pgrep -P "$1"); do kids "$c"; echo "$c"; done; }
cat > fake.py <<'T'
import http.server, os, socketserver, sys, time
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def do(self):
        open("hits", "a").write("hit\n"); self.rfile.read(int(self.headers.get("content-length") or 0))
        mode = open("mode").read().strip()
        if mode != "drip":
            self.send_response(int(mode)); self.send_header("Retry-After", "3600"); self.send_header("content-length", "0"); self.end_headers(); return
        self.send_response(200); self.send_header("content-length", "100000"); self.end_headers()
        while True: self.wfile.write(b" "); self.wfile.flush(); time.sleep(1)
    do_GET = do_POST = do
class S(socketserver.ThreadingMixIn, http.server.HTTPServer): daemon_threads = True
s = S(("127.0.0.1", 0), H); open("port", "w").write(str(s.server_address[1])); s.serve_forever()
T
python3 fake.py & fake=$!
until [ -s port ]; do sleep 0.1; done
export MLFLOW_TRACKING_URI=http://127.0.0.1:$(cat port)
for mode in 429 503 drip; do
  echo $mode >mode; rm -f hits
  timeout 600 "$HARNESS" sweep photos --data photos --device cpu --trials 1 >out 2>&1 & p=$!
  while kill -0 $p 2>/dev/null && ! [ -s hits ]; do sleep 0.1; done
  for _ in $(seq 90); do kill -0 $p 2>/dev/null || break; sleep 1; done
  if kill -0 $p 2>/dev/null; then kill -9 $p $(kids $p); kill $fake; fail "$mode: still waiting after 90 s; said: $(tail -1 out)"; fi
  echo "--- $mode"; grep -A1 "^error" out || { kill $fake; fail "$mode: no sentence"; }
done
kill $fake; pass "said, each"
