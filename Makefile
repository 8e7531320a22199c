# Runs the stages of the data flywheel in order; each target calls the script of the same name in scripts/.
#   make data sweep evaluate               build the data set, search, evaluate
#   make sweep PROFILE=demo                use another profile of params.yaml
#   make sweep SET="sweep.trials=4"        override single params
#   make evaluate FORCE=1                  run even if up to date
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
ID ?=
export PROFILE SET MODEL REASON A B ID

# The name of this file holds a checksum of the requirements, so the environment is refreshed when their content
# changes, not when their time stamps do.
READY := .venv/ready-$(shell cat pyproject.toml requirements.lock | cksum | tr ' ' '-')
VENV_PYTHON := .venv/bin/python
# If the Python of .venv was removed or upgraded, it cannot import its packages: make .venv again.
# -I: a probe must not fail for what the shell has in PYTHONPATH or PYTHONHOME.
PROBE := -I -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))'
ifneq ($(shell $(VENV_PYTHON) $(PROBE) 2>/dev/null && echo sound),sound)
.PHONY: $(READY)
endif
# Use the code of this checkout and the packages of .venv alone, whatever the shell is set up for.
export PYTHONPATH := $(CURDIR)/src
unexport PYTHONHOME PYTHONPLATLIBDIR PYTHONOPTIMIZE PYTHONWARNINGS PYTHONINSPECT
# pip installs into .venv, all of it, whatever pip.conf and PIP_… say; what they say of the index holds.
export PIP_USER := 0
export PIP_NO_DEPS := 0
export PIP_DRY_RUN := 0
export PIP_REQUIRE_HASHES := 0
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON
INSTALL = $(VENV_PYTHON) -m pip install --target= --root=/ --prefix='$(CURDIR)/.venv'
SCRIPT = exec $(VENV_PYTHON) scripts/$@.py
# Pass FORCE=1 and ARGS to the goals on the command line, not to the stages that these depend on.
STAGE = $(SCRIPT) $(if $(filter $@,$(MAKECMDGOALS)),$(if $(filter-out 0,$(FORCE)),--force) $(ARGS))

.PHONY: help
help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  PROFILE=cifar10|laptop|demo   SET="sweep.trials=4 sweep.epochs=2"   FORCE=1   see params.yaml'

.PHONY: demo
demo: $(READY) ## run the whole loop once on scikit-learn's digits: no account, GPU or download needed
	@$(SCRIPT) --profile demo $(ARGS)

.PHONY: data sweep evaluate
data: $(READY) ## build the data set and its splits (artifact <data.name>_dataset)
	@$(STAGE)

sweep: data ## search for the best model and publish it (artifact model-<run_id>, alias best)
	@$(STAGE)

evaluate: sweep ## evaluate the best model on the test set; promote it if it passes the gate
	@$(STAGE)

.PHONY: serve stop
serve: $(READY) ## serve the production model in the background (FOREGROUND=1: in the foreground)
	@$(SCRIPT) $(if $(filter-out 0,$(FOREGROUND)),--foreground) $(ARGS)

stop: $(READY) ## stop the server that make serve started
	@$(SCRIPT) $(ARGS)

.PHONY: simulate retrain
simulate: $(READY) ## send the simulation images to the server; publish their labels
	@$(SCRIPT) $(ARGS)

retrain: $(READY) ## if there are new labels, retrain on all of them so far (FORCE=1: also without new ones)
	@$(STAGE)

.PHONY: label collect monitor forget
label: $(READY) ## label a sample of the images that the server kept, on a page in the browser (ARGS="--labeller ann")
	@$(SCRIPT) $(ARGS)

collect: $(READY) ## publish labelled traffic as feedback, for make retrain (ARGS="--labels labels.csv": also from a file)
	@$(SCRIPT) $(ARGS)

monitor: $(READY) ## say how production does, with and without labels (ARGS=--check: fail while there is an alarm)
	@$(SCRIPT) $(ARGS)

forget: $(READY) ## remove ID=<prediction_id or content hash> from the traffic and from all later feedback
	@$(SCRIPT) $(ARGS) -- "$$ID"

.PHONY: promote rollback history
promote: $(READY) ## promote MODEL=name:version if it passes the gate (FORCE=1 REASON="…": in any case)
	@$(SCRIPT) $(if $(filter-out 0,$(FORCE)),--force) --reason="$$REASON" -- "$$MODEL"

rollback: $(READY) ## put the previous model back into production
	@$(SCRIPT) --reason="$$REASON"

history: $(READY) ## show what was promoted: who, when and why (ARGS=--all: every alias)
	@$(SCRIPT) $(ARGS)

.PHONY: sync
sync: $(READY) ## upload to W&B what is missing there (ARGS="--keep ours": keep local aliases that moved on both sides)
	@$(SCRIPT) $(ARGS)

.PHONY: report compare
report: $(READY) ## write one HTML page with all results: reports/<profile>/index.html
	@$(SCRIPT) $(ARGS)

compare: $(READY) ## compare A=name:version with B=name:version (ARGS=--json)
	@$(SCRIPT) $(ARGS) -- "$$A" "$$B"

.PHONY: status doctor artifacts lineage logs prune clean
status: $(READY) ## show whether each stage is up to date, and why
	@$(SCRIPT) $(ARGS)

doctor: $(READY) ## check this machine and print a fix for each problem
	@$(SCRIPT) $(ARGS)

artifacts: $(READY) ## list all artifact versions with their aliases (ARGS=--verify: read every byte)
	@$(SCRIPT) $(ARGS)

lineage: $(READY) ## show what the production model was made from (ARGS=name:version: another artifact)
	@$(SCRIPT) $(ARGS)

logs: $(READY) ## show the path and the last lines of each log
	@$(SCRIPT) $(ARGS)

prune: $(READY) ## list versions that nothing needs (ARGS=--yes: remove them)
	@$(SCRIPT) $(ARGS)

clean: $(READY) ## remove reports and the leftovers of killed runs; artifacts stay
	@$(SCRIPT) $(ARGS)

.PHONY: lint test test-gpu test-cpus test-all
lint: $(READY) ## run ruff (lint and format check) and mypy
	@$(VENV_PYTHON) -m ruff check . && $(VENV_PYTHON) -m ruff format --check . && $(VENV_PYTHON) -m mypy \
	  && $(VENV_PYTHON) -m mypy benchmarks

test: lint ## run lint, type checks and tests (about 5 minutes on two cores)
	@exec $(VENV_PYTHON) -m pytest -n 3 -m "not long" $(ARGS)

test-gpu: $(READY) ## test the device code on this machine's GPU
	@FLYWHEEL_TEST_DEVICE=cuda exec $(VENV_PYTHON) -m pytest -m gpu $(ARGS)

# Other makers and ages of CPU, as far as this one can play them; float32 everywhere; two threads.
CPUS := OMP_NUM_THREADS=1 OMP_NUM_THREADS=2 ONEDNN_MAX_CPU_ISA=AVX2 ONEDNN_MAX_CPU_ISA=AVX512_CORE \
  ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 ATEN_CPU_CAPABILITY=default FLYWHEEL_TEST_SET=recipe.precision=float32
define TEST_CPU
@echo '$(1)' && $(1) $(VENV_PYTHON) -m pytest -m "numerics and not long" -q $(ARGS)

endef
test-cpus: $(READY) ## run the tests that train as other CPUs would (settings only)
	$(foreach cpu,$(CPUS),$(call TEST_CPU,$(cpu)))

test-all: lint ## run make test and the long tests (an hour)
	@exec $(VENV_PYTHON) -m pytest -n 3 $(ARGS)

BENCHES := training serving traffic records label_page sweep_overhead start_up idle
STUDIES := loop retrain_variants memory monitor labelling kills gate_power precision concurrency compact searcher_table
BENCH ?= $(BENCHES)
BENCH_LONG ?= loop
# One line per benchmark in the list; the first failure ends the recipe.
define BENCHMARK
@exec $(VENV_PYTHON) benchmarks/$(1).py $(ARGS)

endef
BENCHMARKS = $(if $(or $(filter-out $2,$($1)),$(if $($1),,none)),@echo 'error: $1=$($1): choose of $2' >&2; exit 1,\
  $(foreach name,$($1),$(call BENCHMARK,$(name))))
.PHONY: bench
bench: $(READY) ## measure speed against textbook baselines, in less than half an hour (BENCH=training: only one)
	$(call BENCHMARKS,BENCH,$(BENCHES))

.PHONY: bench-long
bench-long: $(READY) ## run the studies behind the defaults, minutes to hours (BENCH_LONG=compact: only one)
	$(call BENCHMARKS,BENCH_LONG,$(STUDIES))

.PHONY: setup lock format docs
setup: $(READY) ## create or refresh .venv (every target does this first)

format: $(READY) ## format the code
	@$(VENV_PYTHON) -m ruff check --fix . && $(VENV_PYTHON) -m ruff format .

docs: $(READY) ## write docs/params.md from the code, and the tables of figures from benchmarks/results
	@$(VENV_PYTHON) scripts/docs.py && exec $(VENV_PYTHON) benchmarks/tables.py

lock: $(READY) ## write requirements.lock from .venv
	@head -n 2 requirements.lock > .lock-new && $(VENV_PYTHON) -m pip freeze --exclude-editable | sort -f >> .lock-new \
	  && mv .lock-new requirements.lock

# Make .venv again if it is incomplete or its Python is missing or too old. What is there is removed only by a Python that
# can make a new one.
$(READY):
	@$(PYTHON) -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  'error: Python 3.11 or newer is needed; name one, for example: make PYTHON=python3.12 setup$(if $(PYTHONHOME),; PYTHONHOME is not used)' >&2; exit 1; }
	@echo 'setup: installing into .venv (about 7 GB with CUDA builds; 2 to 10 minutes)'
	@$(VENV_PYTHON) $(PROBE) 2>/dev/null || { $(PYTHON) -I -c 'import ensurepip' && $(PYTHON) -I -m venv --clear .venv; } \
	  || { echo 'error: cannot make .venv; the reason is above (Debian: apt install python3-venv)' >&2; exit 1; }
	@rm -f .venv/ready-*
	@$(INSTALL) -qq --disable-pip-version-check -c requirements.lock -e '.[dev]' || { echo \
	  'error: the installation failed; the reason is above. With a package index and 7 GB free, run make setup again' \
	  >&2; exit 1; }
	@touch $@
