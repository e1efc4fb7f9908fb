# Each target is a line or two that you could type yourself.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# A CPU build of torch is far smaller: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# A worker for every core, each of one thread; a file's tests share a worker, and so its fixtures.
WORKERS ?= -n auto --dist loadfile

.PHONY: demo test test-slow test-all check docs
.DELETE_ON_ERROR:

$(VENV)/made:
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install torch torchvision --index-url $(TORCH_INDEX))
	touch $@

$(VENV)/installed: setup.cfg pyproject.toml | $(VENV)/made
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet -e '.[test]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed-test
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/jem train --control

test: $(VENV)/installed-test
	$(BIN)/python -m pytest $(WORKERS) -m "not slow" --cov=jem --cov-report=term --cov-fail-under=95 --durations=15

test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest $(WORKERS) -m slow --durations=15

test-all: test test-slow

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/count_lines.py

docs: $(VENV)/installed-test
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . site
	@echo "open site/docs/index.html"

# make benchmark-recipes, -sgld, -levers, -scoring, -tables, -finetune, -scaling, -unseen, -completion, -companion, -heads, -far, -photographs, -embeddings, -verdict, -scores, -attacks, -text, -density or -own_networks; ARGS are its flags.
benchmark-%: $(VENV)/installed
	$(BIN)/python scripts/benchmark_$*.py $(ARGS)
