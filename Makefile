# The stages of the data flywheel, chained; nothing here but wiring.
#   make data sweep evaluate               the real job
#   PROFILE=demo make sweep                another profile of params.yaml
#   make sweep SET="sweep.trials=4"        single values
#   make evaluate FORCE=1                  run though up to date
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
SHELL := /bin/sh

PYTHON ?= python3
PROFILE ?= cifar10
SET ?=
ARGS ?=
MODEL ?=
REASON ?=
A ?=
B ?=
export PROFILE SET MODEL REASON A B

# The stamp's name holds a checksum of what is installed: the environment is refreshed when the content
# of these files changes, never because of a time stamp.
READY := .venv/ready-$(shell cat pyproject.toml requirements.lock | cksum | tr ' ' '-')
VENV_PYTHON := .venv/bin/python
# One whose Python is gone, or became another version, cannot import what was installed into it: it is made anew.
ifneq ($(shell $(VENV_PYTHON) -c 'import pip' 2>/dev/null && echo sound),sound)
.PHONY: $(READY)
endif
# The code of this checkout, also where .venv came along from another: an installed package is a path to the first one.
export PYTHONPATH := $(CURDIR)/src$(if $(PYTHONPATH),:$(PYTHONPATH))
SCRIPT = exec $(VENV_PYTHON) scripts/$@.py
# FORCE=1 and ARGS go to the goals that were typed, not to the stages they depend on.
STAGE = $(SCRIPT) $(if $(filter $@,$(MAKECMDGOALS)),$(if $(filter-out 0,$(FORCE)),--force) $(ARGS))

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  PROFILE=cifar10|laptop|demo   SET="sweep.trials=4 sweep.epochs=2"   FORCE=1   see params.yaml'

.PHONY: demo
demo: $(READY) ## the whole wheel on digits that ship with scikit-learn: no account, GPU or download
	@$(SCRIPT) --profile demo $(ARGS)

.PHONY: data sweep evaluate
data: $(READY) ## build the data set and its splits: the artifact cifar10_dataset
	@$(STAGE)

sweep: data ## search for the best model; publishes model-<run_id>, linked as best
	@$(STAGE)

evaluate: sweep ## judge the best model on the test set; it goes into production if it passes the gate
	@$(STAGE)

.PHONY: serve stop
serve: $(READY) ## answer /predict in the background with the model in production (FOREGROUND=1 stays)
	@$(SCRIPT) $(if $(filter-out 0,$(FOREGROUND)),--foreground) $(ARGS)

stop: $(READY) ## end the server that make serve started, and nothing else
	@$(SCRIPT) $(ARGS)

.PHONY: simulate retrain
simulate: $(READY) ## send the simulation images to the server; publish its failures as feedback
	@$(SCRIPT) $(ARGS)

retrain: $(READY) ## continue from production with its failures; safe in cron (FORCE=1: again on the same failures)
	@$(STAGE)

.PHONY: promote rollback history
promote: $(READY) ## put MODEL=name:version into production if it passes the gate (FORCE=1 REASON="…" if not)
	@$(SCRIPT) $(if $(filter-out 0,$(FORCE)),--force) --reason="$$REASON" -- "$$MODEL"

rollback: $(READY) ## put the previous model back into production
	@$(SCRIPT) --reason="$$REASON"

history: $(READY) ## what moved into production: who, when and why (ARGS=--all for every alias)
	@$(SCRIPT) $(ARGS)

.PHONY: sync
sync: $(READY) ## upload to W&B what was recorded offline, and compare (ARGS="--keep ours" or theirs: moved aliases)
	@$(SCRIPT) $(ARGS)

.PHONY: report compare
report: $(READY) ## one HTML page that tells where the wheel stands: reports/<profile>/index.html
	@$(SCRIPT) $(ARGS)

compare: $(READY) ## what differs between A=name:version and B=name:version (ARGS=--json)
	@$(SCRIPT) $(ARGS) -- "$$A" "$$B"

.PHONY: status doctor artifacts lineage logs prune clean
status: $(READY) ## where each stage stands, and why
	@$(SCRIPT) $(ARGS)

doctor: $(READY) ## what this machine offers, and what is wrong with it
	@$(SCRIPT) $(ARGS)

artifacts: $(READY) ## every artifact version, with its aliases (ARGS=--verify reads every byte)
	@$(SCRIPT) $(ARGS)

lineage: $(READY) ## what came from what (ARGS=name:version for one artifact)
	@$(SCRIPT) $(ARGS)

logs: $(READY) ## where each stage's log is, and its last lines
	@$(SCRIPT) $(ARGS)

prune: $(READY) ## the versions that nothing needs (ARGS=--yes removes them)
	@$(SCRIPT) $(ARGS)

clean: $(READY) ## remove the profile's reports and what killed runs left; artifacts stay
	@$(SCRIPT) $(ARGS)

.PHONY: lint test test-gpu test-all
lint: $(READY) ## ruff (lint and format) and mypy
	@$(VENV_PYTHON) -m ruff check . && $(VENV_PYTHON) -m ruff format --check . && $(VENV_PYTHON) -m mypy \
	  && $(VENV_PYTHON) -m mypy benchmarks

test: lint ## lint, types and tests (about 15 minutes on two cores)
	@exec $(VENV_PYTHON) -m pytest -m "not long" $(ARGS)

test-gpu: $(READY) ## the tests of the code that a GPU runs, on this machine's GPU
	@FLYWHEEL_TEST_DEVICE=cuda exec $(VENV_PYTHON) -m pytest -m gpu $(ARGS)

test-all: lint ## the same and the long tests (an hour and a half)
	@exec $(VENV_PYTHON) -m pytest $(ARGS)

BENCHES := training serving sweep_overhead start_up
STUDIES := wheel retrain_rate gate_power precision concurrency compact sweep searcher_table searcher_study
BENCH ?= $(BENCHES)
BENCH_LONG ?= wheel
# A line for each that was asked for; the first that fails ends the recipe.
define BENCHMARK
@exec $(VENV_PYTHON) benchmarks/$(1).py $(ARGS)

endef
BENCHMARKS = $(if $(or $(filter-out $2,$($1)),$(if $($1),,none)),@echo 'error: $1=$($1): choose of $2' >&2; exit 1,\
  $(foreach name,$($1),$(call BENCHMARK,$(name))))
.PHONY: bench
bench: $(READY) ## speed against the textbook baselines, under 20 minutes (BENCH=training|serving|… for one)
	$(call BENCHMARKS,BENCH,$(BENCHES))

.PHONY: bench-long
bench-long: $(READY) ## the studies behind the defaults, minutes to hours (BENCH_LONG=wheel|compact|sweep|…)
	$(call BENCHMARKS,BENCH_LONG,$(STUDIES))

.PHONY: setup lock format docs
setup: $(READY) ## create or refresh .venv (every target does)

format: $(READY) ## format the code
	@$(VENV_PYTHON) -m ruff check --fix . && $(VENV_PYTHON) -m ruff format .

docs: $(READY) ## write docs/params.md anew from the code that checks params.yaml
	@exec $(VENV_PYTHON) scripts/docs.py

lock: $(READY) ## write requirements.lock anew from .venv
	@head -n 2 requirements.lock > .lock-new && $(VENV_PYTHON) -m pip freeze --exclude-editable | sort -f >> .lock-new \
	  && mv .lock-new requirements.lock

# What is half-made, or has no sound Python that is new enough, is made anew.
$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  'error: Python 3.11 or newer is needed; name one, for example: make PYTHON=python3.12 setup' >&2; exit 1; }
	@echo 'setup: installing into .venv (about 7 GB with CUDA builds; 2 to 10 minutes)'
	@$(VENV_PYTHON) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { rm -rf .venv && $(PYTHON) -m venv .venv; } || { echo \
	  'error: cannot make .venv; the reason is above (Debian: apt install python3-venv)' >&2; exit 1; }
	@rm -f .venv/ready-*
	@$(VENV_PYTHON) -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[dev]' || { echo \
	  'error: the installation failed; the reason is above. With a package index and 7 GB free, run make setup again' \
	  >&2; exit 1; }
	@touch $@
