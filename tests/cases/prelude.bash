# What the cases share; each reads it by `. "$(dirname "$0")/prelude.bash"`. A case prints PASS or FAIL and exits 0 or 1.
# HARNESS is the command to try, with a `python` beside it; weights are those of HARNESS_TEST_HOME, else of runs/ of this clone.
set -u
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
HARNESS=${HARNESS:-$ROOT/.venv/bin/harness}
[ -x "$HARNESS" ] || { echo "ERROR: no harness at $HARNESS (set HARNESS)"; exit 2; }
HARNESS=$(cd "$(dirname "$HARNESS")" && pwd)/$(basename "$HARNESS")
PY=$(dirname "$HARNESS")/python
W=$(mktemp -d -t case.XXXXXX); trap 'chmod -R u+rwX "$W" 2>/dev/null; rm -rf "$W"' EXIT
unset STUDY DATA RECIPE VARIANT CONFIG TRIALS WORKERS ENGINE ADDRESS DEVICE QUICK EXACT KIMG SAMPLES SEED CONFIRM TOP SEEDS \
      SAMPLINGS GRID_KIMG GRID_STEPS HOURS THEN HARNESS_STORAGE MLFLOW_TRACKING_URI HARNESS_SEARCH_SPACES HARNESS_CHECKPOINTS
export HARNESS_HOME=$W/home
mkdir -p "$W/home" "$W/search_spaces"; cd "$W" || exit 2
weights() { [ -d "${HARNESS_TEST_HOME:-$ROOT/runs}/weights" ] && cp -r "${HARNESS_TEST_HOME:-$ROOT/runs}/weights" "$HARNESS_HOME/weights"; :; }
pass() { echo "PASS: $*"; exit 0; }
fail() { echo "FAIL: $*"; exit 1; }
study() {  # NAME [extra lines of [data]]: the smallest study on a folder of images
cat > "search_spaces/$1.toml" <<TOML
[data]
source = "folder"
image_size = 32
${2:-}
[fixed]
ngf = 8
ndf = 8
batch_size = 16
[space.lr_g]
type = "float"
low = 1e-4
high = 1e-3
log = true
[budget]
trials = 2
kimg = 0.2
rungs = [0.1]
[scoring.final]
extractor = "mobilenet-v2"
samples = 20
reference = 20
[scoring.rung]
extractor = "mobilenet-v2"
samples = 20
reference = 20
TOML
}
