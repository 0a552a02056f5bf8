# Verbs only: each recipe is one line that calls the harness. Variables reach it through the environment, unexpanded,
# so that no value of theirs is ever read by make or by a shell.
PYTHON ?= python3
VARIABLES := STUDY RECIPE VARIANT DATA TRIALS WORKERS DEVICE QUICK EXACT KIMG SAMPLES SEED CONFIG ENGINE ADDRESS KILLS CONFIRM TOP SEEDS SAMPLINGS FULL
$(foreach v,$(VARIABLES),$(if $(value $(v)),$(eval override $(v) := $$(value $(v)))$(eval export $(v))))
.DEFAULT_GOAL := help
.PHONY: help setup sweep plan confirm claims audit worker reconcile train recipes report generate ui test faults lint bench doctor clean

help: ; @$(PYTHON) -m harness
setup: ; @$(PYTHON) -m harness setup
sweep: ; @$(PYTHON) -m harness sweep
plan: ; @$(PYTHON) -m harness plan
confirm: ; @$(PYTHON) -m harness confirm
claims: ; @$(PYTHON) -m harness claims
audit: ; @$(PYTHON) -m harness audit
worker: ; @$(PYTHON) -m harness worker
reconcile: ; @$(PYTHON) -m harness reconcile
train: ; @$(PYTHON) -m harness train
recipes: ; @$(PYTHON) -m harness recipes
report: ; @$(PYTHON) -m harness report
generate: ; @$(PYTHON) -m harness generate
ui: ; @$(PYTHON) -m harness ui
test: ; @$(PYTHON) -m harness test
faults: ; @$(PYTHON) -m harness faults
lint: ; @$(PYTHON) -m harness lint
bench: ; @$(PYTHON) -m harness bench
doctor: ; @$(PYTHON) -m harness doctor
clean: ; @$(PYTHON) -m harness clean
