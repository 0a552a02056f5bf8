#!/usr/bin/env bash
# The harness unpacked without its own .git (a zip of the sources, a vendored copy) inside another project's repository.
# Expected: provenance says 'unknown', not the other project's commit.
. "$(dirname "$0")/prelude.bash"
REAL=$("$PY" -c "import sys; print(sys.executable)")   # without the modules of this clone
git init -q outer && cd outer && mkdir tools && cp -r "$ROOT/harness" tools/ && cp "$ROOT/pyproject.toml" tools/
echo hello > readme && git -c user.email=a@b -c user.name=n add readme && git -c user.email=a@b -c user.name=n commit -qm "another project"
outer=$(git rev-parse --short=12 HEAD)
said=$(cd tools && env -u PYTHONPATH "$REAL" -c 'import sys; sys.path.insert(0, "."); from harness.machine.provenance import git_commit; print(git_commit())')
echo "the other project's commit $outer, the harness says $said"
[ "$said" = unknown ] && pass "unknown"
fail "every run is tagged with another project's commit, or with nothing: $said"
