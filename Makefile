# Every command of this repository. `make` alone lists them; README says what they are for.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A processor that multiplies bfloat16 by itself trains faster with it. `no` is float32.
ifeq ($(origin ACCELERATE_MIXED_PRECISION),undefined)
export ACCELERATE_MIXED_PRECISION := $(shell \
	test ! -e /dev/nvidia0 && grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo bf16 || echo no)
endif

PYTHON := .venv/bin/python
READY := .venv/.ready
SITE_READY := .venv/.site-ready
NOTEBOOKS ?= $(sort $(wildcard notebooks/[0-9]*.ipynb))

# What `make reproduce` runs. Empty means the default that workflow/execute.py names.
PROFILE ?=
TASKS ?=
SEEDS ?=
BACKBONE ?=
# How many notebooks run at a time.
JOBS ?=
# A folder with a Snakemake profile, such as workflow/slurm; empty runs on this machine.
CLUSTER ?=
# Anything else for Snakemake, such as --dry-run.
FLAGS ?=

VARIABLES := NOTEBOOKS PROFILE TASKS SEEDS BACKBONE JOBS CLUSTER FLAGS
GIVEN := $(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name)))
$(foreach name,$(filter-out $(VARIABLES),$(GIVEN)),$(error unknown variable $(name); choose one of: $(sort $(VARIABLES))))

SETTINGS = $(if $(PROFILE),'profile=$(PROFILE)') $(if $(TASKS),'tasks=$(TASKS)') $(if $(SEEDS),'seeds=$(SEEDS)') \
           $(if $(BACKBONE),'backbone=$(BACKBONE)') $(if $(JOBS),'jobs=$(JOBS)')

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'make reproduce PROFILE=full TASKS="movie amazon" SEEDS="0 1 2" BACKBONE=minilm-l6 JOBS=2'

.PHONY: reproduce
reproduce: $(READY) ## run every notebook; figures and results.csv go to reproduced/
	@$(PYTHON) -m snakemake --snakefile Snakefile $(if $(CLUSTER),--profile '$(CLUSTER)',--cores all) \
		--rerun-incomplete --keep-going --nolock --quiet host reason \
		$(if $(strip $(SETTINGS)),--config $(SETTINGS)) $(FLAGS)

.PHONY: study
study: SEEDS := $(or $(SEEDS),0 1 2 3 4)
study: $(READY) ## train every method on several seeds and write the scoreboard's tables to data/results/
	@$(PYTHON) -m snakemake study --snakefile Snakefile $(if $(CLUSTER),--profile '$(CLUSTER)',--cores all) \
		--rerun-incomplete --keep-going --nolock --quiet host reason --config $(SETTINGS) $(FLAGS)

.PHONY: test
test: $(READY) ## run all tests
	@ACCELERATE_MIXED_PRECISION=no OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q --durations=10 \
		--numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: soak
soak: $(READY) ## kill a batch twenty times and see it end as if nothing had happened (half an hour)
	@$(PYTHON) tests/soak/kills.py

.PHONY: bench
bench: $(READY) ## measure training, sweeps, the runtime and its rivals, alone and under load; the tables go to data/results/
	@ACCELERATE_MIXED_PRECISION=no $(PYTHON) -m workflow.bench
	@$(PYTHON) -m workflow.rivals
	@$(PYTHON) -m workflow.serving

.PHONY: lab
lab: $(READY) ## open the notebooks in JupyterLab
	@$(PYTHON) -m jupyterlab notebooks

.PHONY: site
site: $(SITE_READY) ## build the book into build/site/: notebooks, explorer, glossary, claims, the package
	@$(PYTHON) -m workflow.site

.PHONY: notebooks
notebooks: $(READY) ## execute the notebooks in place, ready to commit (some: NOTEBOOKS=notebooks/01_deebert_pabee.ipynb)
	@$(PYTHON) -m workflow.execute in-place $(NOTEBOOKS)

.PHONY: lint
lint: $(READY) ## check style, spelling and file sizes
	@$(PYTHON) -m pre_commit run --all-files

.PHONY: lock
lock: $(SITE_READY) ## write the two locks anew from what is installed
	@$(PYTHON) workflow/lock.py

.PHONY: clean
clean: ## remove what runs leave; trained models, downloads and .venv stay
	@rm -rf reproduced .snakemake build docs/api eeutils.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \
		-o -name '.partial-*' -o -name '*.failed.ipynb' \) -print0 | xargs -0 rm -rf

.PHONY: distclean
distclean: clean ## also remove .venv and the trained models (runs/); downloads stay
	@rm -rf .venv runs

# The stamp holds the path of this folder: in a copied or moved checkout the environment still points to the old one.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif

$(READY): pyproject.toml requirements.lock
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		for python in python3.11 python3 python3.12 python3.13 none; do \
			if [ $$python = none ]; then \
				echo 'Python 3.11 or newer with its venv module was not found: install it (Debian: python3.11-venv), then run make again.' >&2; \
				exit 1; \
			fi; \
			if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
		done; \
		echo "Making .venv with $$($$python --version)"; \
		$$python -m venv --clear .venv; \
	fi
	@rm -f $(READY)
	@echo "Installing $$(grep -c == requirements.lock) pinned packages (a few minutes the first time)"
	@$(PYTHON) -m pip install --progress-bar off -r requirements.lock 2> >(grep -v '^WARNING: Location' >&2) | awk '\
		/^(Collecting|Processing)/ && ++n % 25 == 0 {print "  " n " found"; fflush()} \
		/^Installing/ {print "  unpacking"; fflush()}'
	@$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@printf '%s\n' '$(CURDIR)' > $(READY)
	@echo 'The environment is ready.'

# What only the book needs; neither the notebooks nor the tests wait for it.
$(SITE_READY): requirements-site.lock $(READY)
	@echo "Installing $$(grep -c == requirements-site.lock) more packages for the book"
	@$(PYTHON) -m pip install --quiet -r requirements-site.lock
	@touch $(SITE_READY)
