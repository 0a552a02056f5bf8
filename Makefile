# Verbs only: each recipe is one line. The harness's own call it; the developers' call their tools. Variables reach both
# through the environment, unexpanded, so that no value of theirs is ever read by make or by a shell.
PYTHON ?= python3
VARIABLES := STUDY RECIPE VARIANT DATA TRIALS WORKERS LANES DEVICE QUICK EXACT KIMG SAMPLES SEED GRID_KIMG GRID_STEPS CONFIG ENGINE ADDRESS KILLS CONFIRM TOP SEEDS SAMPLINGS FULL HOURS THEN
$(foreach v,$(VARIABLES),$(if $(value $(v)),$(eval override $(v) := $$(value $(v)))$(eval export $(v))))
VERBS := help setup new sweep plan confirm claims audit worker reconcile train recipes report generate ui dashboard doctor test lint docs bench faults clean
# MAKECMDGOALS itself, exported, would be the goals of every make below this one.
override GOALS := $(value MAKECMDGOALS)
export VARIABLES VERBS GOALS
# The folder of the development tools: .venv/bin, made first where it is not there.
TOOLS = bin=$$($(PYTHON) tools/bootstrap.py --tools)
.DEFAULT_GOAL := help
.PHONY: $(VERBS)
.DEFAULT: ; @$(PYTHON) tools/bootstrap.py --no-such-verb

help: ; @$(PYTHON) tools/bootstrap.py
setup: ; @$(PYTHON) tools/bootstrap.py setup
new: ; @$(PYTHON) tools/bootstrap.py new
sweep: ; @$(PYTHON) tools/bootstrap.py sweep
plan: ; @$(PYTHON) tools/bootstrap.py plan
confirm: ; @$(PYTHON) tools/bootstrap.py confirm
claims: ; @$(PYTHON) tools/bootstrap.py claims
audit: ; @$(PYTHON) tools/bootstrap.py audit
worker: ; @$(PYTHON) tools/bootstrap.py worker
reconcile: ; @$(PYTHON) tools/bootstrap.py reconcile
train: ; @$(PYTHON) tools/bootstrap.py train
recipes: ; @$(PYTHON) tools/bootstrap.py recipes
report: ; @$(PYTHON) tools/bootstrap.py report
generate: ; @$(PYTHON) tools/bootstrap.py generate
ui: ; @$(PYTHON) tools/bootstrap.py ui
dashboard: ; @$(PYTHON) tools/bootstrap.py dashboard
doctor: ; @$(PYTHON) tools/bootstrap.py doctor

test: ; @$(TOOLS) && "$$bin/python" tools/test.py
lint: ; @$(TOOLS) && "$$bin/ruff" check . && "$$bin/ruff" format --check . && "$$bin/mypy" && "$$bin/lint-imports" && "$$bin/codespell" && "$$bin/python" -m tools.prose
docs: ; @$(TOOLS) && "$$bin/python" -m tools.site
bench: ; @$(TOOLS) && "$$bin/python" -m benchmarks.bench $${FULL:+--full}
faults: ; @$(TOOLS) && "$$bin/python" -m tests.faults.table
clean: ; @$(PYTHON) tools/clean.py
