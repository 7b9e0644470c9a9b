# Everything here works from a clean clone: each goal makes .venv first, once, and again when the pins change.
#
#   PYTHON=python3.12   another interpreter (3.11 or newer)
#   EXTRAS=gpu,dev      vLLM's CUDA build instead of its CPU build
#   TORCH_INDEX=…       address of PyTorch's CPU index, where pip does not know it yet (see CONTRIBUTING.md)
#   ARGS=…              passed on to pytest, ratchet or the benchmarks
#   WORKERS=…           processes that `make test` runs tests in: a number, or one a core (0: in its own)

PYTHON ?= python3
EXTRAS ?= cpu,dev
TORCH_INDEX ?=
ARGS ?=
WORKERS ?= auto
BENCHMARKS ?= trainer judges pairing

BIN := .venv/bin
READY := .venv/ready
LOG := .venv/setup.log
TORCH := $(shell sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input -c constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test soak check format bench clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(READY)  ## make .venv with everything pinned in constraints.txt

demo: $(READY)  ## rounds of online DPO on a laptop CPU: "ravin likes" learns to end in "pizza"
	$(BIN)/ratchet run food $(ARGS)

test: $(READY)  ## the whole test suite but the soak tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

soak: $(READY)  ## long fault and load tests
	$(BIN)/python -m pytest -m soak $(ARGS)

check: $(READY)  ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(READY)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## every benchmark, one after another; BENCHMARKS=trainer ARGS=--quick for a part
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python tests/benchmarks/$$name.py $(ARGS); done

clean:  ## remove .venv, builds and caches; runs and artifacts stay
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is newer than the pins only when the whole recipe has succeeded. torch comes first, so that a missing CPU
# build shows at once. vLLM's CPU build asks for torchvision, torchaudio and torchcodec, and pip brings their CUDA
# builds: beside a CPU torch they fail on import ("operator torchvision::nms does not exist"), so they go again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "$(PYTHON) is not Python 3.11 or newer with venv (Debian: package python3-venv)." \
			"Name another: make PYTHON=python3.12 …" >&2; exit 1; }
	@echo "Setting up .venv: downloads about 1 GB, takes 2 to 10 minutes, once. Log: $(LOG)"
	@$(PYTHON) -m venv .venv
	@trap '[ $$? = 0 ] || { tail -n 20 $(LOG); echo "Set-up failed; the whole log: $(LOG)"; } >&2' EXIT; \
	exec 3> $(LOG); extras="$(EXTRAS)"; \
	if [[ ",$$extras," == *,cpu,* ]]; then \
		echo "  torch, CPU build"; \
		$(PIP) "torch==$(TORCH)+cpu" >&3 2>&3 || { \
			extras=$$(echo ",$$extras," | sed 's/,cpu,/,/; s/^,//; s/,$$//'); \
			echo "  pip finds no CPU build of torch: taking its default build, and no vLLM (sampling is slower)."; \
			echo "  For vLLM: make clean setup TORCH_INDEX=<PyTorch's CPU index>; see CONTRIBUTING.md."; \
			$(PIP) torch >&3 2>&3; \
		}; \
	fi; \
	echo "  everything else"; \
	$(PIP) -e ".[$$extras]" >&3 2>&3; \
	if [[ ",$$extras," == *,cpu,* ]]; then \
		$(BIN)/python -m pip uninstall -y torchvision torchaudio torchcodec >&3 2>&3; \
	fi
	@touch $(READY)
	@echo "Ready. What this machine has: $(BIN)/ratchet doctor"
