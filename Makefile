# The commands of this project. `make run` and `make test` do their own set-up; nothing but python3, make and pip is
# needed. A second run finds everything in place.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The repository is the default of every command and of docker-compose.yml: models.
MODEL ?= accurate
NAME_accurate := deepfake_clip_b16
NAME_fast := deepfake_clip_b16_128
NAME_tiny := deepfake_efficientnet_lite0
MODEL_NAME := $(or $(NAME_$(MODEL)),$(error MODEL is $(MODEL); allowed: accurate, fast, tiny))
CHECKPOINT := demo/$(MODEL_NAME).safetensors
DEMO := export/deepfake_export/demo
SAMPLE := demo/sample.mp4
VIDEO ?=
N ?= 5000
SEED ?= 1

# Where it is set, every process would compile the project again: the tests start many.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run serve web test test-slow test-gpu fuzz chaos chaos-gateway chaos-scan autoscaling lint types imports check texts format clean

help:  ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

# --- set-up -----------------------------------------------------------------------------------------------------------

$(BIN)/pip:
	@echo "==> making a virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.11 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); run: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3 cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 2; }

# What an extra needs is installed again only when pyproject.toml or the pins change.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "==> installing deepfake-serving[demo]: client, ONNX export (torch, several GB), embedded Triton; takes minutes"
	@PYTHON=$(BIN)/python sh scripts/install.sh demo
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "==> installing deepfake-serving[dev]: everything, and the tools that check it (several GB); takes minutes"
	@PYTHON=$(BIN)/python sh scripts/install.sh dev
	@touch $@ $(VENV)/.demo

setup: $(VENV)/.dev  ## Install everything for development

# --- use --------------------------------------------------------------------------------------------------------------

$(CHECKPOINT): $(DEMO)/$(MODEL_NAME).safetensors $(DEMO)/$(MODEL_NAME).yaml $(VENV)/.demo
	@$(BIN)/deepfake demo-checkpoint $(dir $@) --model $(MODEL)

$(SAMPLE): $(VENV)/.demo
	@echo "==> making a sample clip of a real face (NASA portrait of Eileen Collins): $@"
	@$(BIN)/python scripts/make_sample_clip.py $@

run: $(VENV)/.demo $(CHECKPOINT) $(if $(VIDEO),,$(SAMPLE))  ## Verdict for VIDEO=clip.mp4 (or a sample), end to end; MODEL=fast or tiny for less work
	@$(BIN)/deepfake export $(CHECKPOINT) --precisions auto
	@echo "==> analyzing $(if $(VIDEO),$(VIDEO),$(SAMPLE)) on a private Triton"
	@$(BIN)/deepfake analyze "$(if $(VIDEO),$(VIDEO),$(SAMPLE))" --embedded --model $(MODEL_NAME) || \
	  { code=$$?; [ $$code -eq 3 ] || exit $$code; }  # 3 = inconclusive: an answer, not a failure

serve: $(VENV)/.demo $(CHECKPOINT)  ## Serve the demo model on ports 8000 to 8002 until Ctrl-C
	@$(BIN)/deepfake export $(CHECKPOINT) --precisions auto
	@$(BIN)/deepfake serve $(MODEL_NAME)

web: $(VENV)/.demo $(CHECKPOINT)  ## The verdict service with its web page, on port 8080 until Ctrl-C
	@$(BIN)/deepfake export $(CHECKPOINT) --precisions auto
	@DEEPFAKE_GATEWAY_CHECKPOINT=$(CHECKPOINT) $(BIN)/deepfake gateway --embedded --model $(MODEL_NAME) --data-dir work/gateway

# --- checks -----------------------------------------------------------------------------------------------------------

# Whole files go to the processes in the order of their names: what a file makes once is made once, and the slow ones
# (tests/integration) do not come last. A process that dies ends the run: with another in its place, pytest-xdist waits
# forever for the rest of its file.
test: $(VENV)/.dev  ## Run the tests, on up to four cores
	@$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-slow: $(VENV)/.dev  ## Run the tests that take minutes
	@$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.dev  ## Run the tests that need a GPU and TensorRT; they fail without
	@FAIL_WITHOUT_GPU=1 $(BIN)/python -m pytest -m gpu

fuzz: $(VENV)/.dev  ## Analyze N mutated media files (SEED=1); those that fail are kept in work/fuzz
	@$(BIN)/python tests/fuzz/run.py --count $(N) --seed $(SEED) --keep work/fuzz

chaos: N := 100
chaos: $(VENV)/.dev  ## N=100 faults (processes killed and stopped, disk full) in runs over a directory (SEED=1)
	@CHAOS_FAULTS=$(N) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -s tests/chaos/test_chaos.py

chaos-gateway: N := 100
chaos-gateway: $(VENV)/.dev  ## N=100 kills of gateway, worker, sandbox, Triton and database while it works (SEED=1)
	@CHAOS_FAULTS=$(N) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -s tests/chaos/test_gateway_chaos.py

chaos-scan: N := 50
chaos-scan: CLIPS ?= 2000
chaos-scan: $(VENV)/.dev  ## N=50 kills of driver, actors, nodes and Triton in a scan of CLIPS=2000 on Ray (SEED=1)
	@CHAOS_FAULTS=$(N) CHAOS_CLIPS=$(CLIPS) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -s tests/chaos/test_scan_chaos.py

autoscaling: $(VENV)/.dev  ## 23 minutes of the chart's autoscaling with Prometheus and Tritons, no cluster; as root
	@$(BIN)/deepfake demo-checkpoint demo --model tiny
	@$(BIN)/deepfake export demo/deepfake_efficientnet_lite0.safetensors --precisions fp32 --repository work/autoscaling
	@$(BIN)/python scripts/autoscaling.py --repository work/autoscaling

lint: $(VENV)/.dev  ## ruff, lint and format; codespell
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@git ls-files -z | xargs -0 $(BIN)/codespell

types: $(VENV)/.dev  ## mypy --strict
	@$(BIN)/mypy

imports: $(VENV)/.dev  ## import-linter: the layers of the packages
	@$(BIN)/lint-imports

check: lint types imports test  ## All that CI runs

# Of a language's new texts, "msgstr" is empty; they are shown in English until it is filled.
texts: $(VENV)/.dev  ## Bring the web page's languages up to date with its texts
	@cd gateway/deepfake_gateway/web && $(abspath $(BIN))/pybabel -q extract -F catalogs/babel.cfg -k mark -k say -k say_of:1,2 \
	  --no-location --omit-header --sort-output -o catalogs/texts.pot \
	  . ../../../client/deepfake_client/result
	@for file in gateway/deepfake_gateway/web/catalogs/*.po; do \
	  $(BIN)/pybabel -q update -i gateway/deepfake_gateway/web/catalogs/texts.pot -o $$file -l $$(basename $$file .po) \
	    --no-fuzzy-matching --ignore-obsolete --omit-header --width 116; done
	@rm gateway/deepfake_gateway/web/catalogs/texts.pot

format: $(VENV)/.dev  ## Format the code
	@$(BIN)/ruff check --fix --quiet . && $(BIN)/ruff format .

# The repository stays: exports of yours may be in it.
clean:  ## Remove the environment and everything generated but the model repository
	rm -rf $(VENV) demo work build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
