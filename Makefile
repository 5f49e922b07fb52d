# The two that matter: `make report` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Test files at a time, one more than the two cores that CI has, because many tests wait; a file's tests stay together.
TESTS_AT_ONCE := -n 3 --dist loadfile
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help report test check lint format config dag docs setup setup-dev setup-full setup-bench peers bench clean

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

report: setup ## Run the default experiment: results/report.md
	$(BIN)/snakemake --cores all results/report.md
	@echo "The report is results/report.md"

test: setup ## Pass all tests
	$(BIN)/python -m pytest $(TESTS_AT_ONCE)

check: setup-full lint ## Everything CI runs
	$(BIN)/python -m pytest $(TESTS_AT_ONCE)

lint: setup-dev ## Format, lint and type checks
	$(BIN)/ruff format --check src scripts tests benchmarks
	$(BIN)/ruff check src scripts tests benchmarks
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/mypy

format: setup-dev ## Format the code
	$(BIN)/ruff format src scripts tests benchmarks
	$(BIN)/ruff check --fix src scripts tests benchmarks
	$(BIN)/snakefmt Snakefile rules

config: setup ## Write config/default.yaml and config/schema.json from src/kv_transition/schema.py
	$(BIN)/python -m kv_transition.config_files

dag: setup ## Draw the rules and the jobs of a small experiment: docs/dag.md, and SVG files (these need graphviz)
	$(BIN)/python -m kv_transition.dag_pictures

docs: dag report ## Draw what the docs show again: the rule graph and the README's figure
	@mkdir -p docs/figures
	cp results/demo/figures/score_vs_budget__phrasebook_qa.png docs/figures/

# In order; each writes results/bench/<name>.json. Without a GPU the page shows benchmarks/measured/gpu_sweep.json, if it is there.
BENCHMARKS := kvpress_sweep sweep_cost gpu_sweep client_cost crash_cost metrics_cost bootstrap_cost coverage \
  tokenise_cost dag_scale touched_cost stage_cost startup_cost sqlite_cost growth

bench: setup-bench setup-full peers ## Measure everything, ours beside the peers: docs/performance.md (about an hour; QUICK=1: see that the benchmarks work)
	@broken=; for name in $(BENCHMARKS); do \
	  echo "== $$name"; rm -f results/bench/$(if $(QUICK),quick/)$$name.json; \
	  $(BIN)/python benchmarks/$$name.py $(if $(QUICK),--quick) || broken="$$broken $$name"; \
	done; \
	$(BIN)/python benchmarks/write_page.py $(if $(QUICK),--quick --out results/bench/quick/performance.md) --broken $$broken

setup: $(VENV)/.base ## Make .venv with what the workflow and its tests need (no torch)
setup-dev: $(VENV)/.dev
setup-bench: $(VENV)/.bench
setup-full: $(VENV)/.full ## Add what the marked test groups need (torch, kvpress)

$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(INSTALL) -e '.[test,dev]'
	@touch $@

$(VENV)/.full: $(VENV)/.dev
	$(INSTALL) -e '.[test,dev,kvpress]'
	@touch $@

$(VENV)/.bench: $(VENV)/.base
	$(INSTALL) -e '.[test,bench]'
	@touch $@

peers: .venv-peers/.installed ## Make .venv-peers, with the other harnesses and HTTP clients that `make bench` measures ours beside

.venv-peers/.installed: benchmarks/peers.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	@touch $@

clean: ## Remove results, not the journal
	rm -rf results .snakemake
