# make demo   paint a picture and write a story with the bundled models, into demo/
# make test   the whole test suite
# make test-gpu  the tests that need a GPU; `make test` runs them last where there is one
# make lint   ruff and mypy
# make clean  remove everything that the others made
#
# Needs python3 (3.11 or newer, with venv), make and git. Everything else is installed into .venv, in the exact
# versions of constraints.txt; a second call finds it there.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-gpu lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/ready
	@mkdir -p demo
	@$(BIN)/diptych image "a cat wearing sunglasses on a beach at sunset" --seed 1 --out demo/cat.png --trace demo/cat.trace
	@$(BIN)/diptych trace film demo/cat.trace --out demo/film.png
	@$(BIN)/diptych text "Once upon a time" --seed 7 --out demo/story.txt
	@echo
	@echo "the picture     demo/cat.png     how it was painted   demo/film.png"
	@echo "the story       demo/story.txt   every step           demo/cat.trace"

test: $(VENV)/ready-test
	@$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile
	@if nvidia-smi -L > /dev/null 2>&1; then DIPTYCH_TEST_GPU=1 $(BIN)/python -m pytest -m gpu; fi

test-gpu: $(VENV)/ready-test
	@DIPTYCH_TEST_GPU=1 $(BIN)/python -m pytest -m gpu

lint: $(VENV)/ready-lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean:
	rm -rf $(VENV) demo dist .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +

# Stamps: what is installed is as new as the list of what to install.
$(VENV)/ready: EXTRAS :=
$(VENV)/ready-test: EXTRAS := [test]
$(VENV)/ready-lint: EXTRAS := [lint]
$(VENV)/ready $(VENV)/ready-test $(VENV)/ready-lint: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing diptych$(EXTRAS) into $(VENV) (the first time takes a few minutes) ..." >&2
	@$(PIP) install -q -c constraints.txt hatchling editables
	@$(PIP) install -q -c constraints.txt --no-build-isolation -e ".$(EXTRAS)"
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is not installed; diptych needs Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "diptych needs Python 3.11 or newer, not `$(PYTHON) -V 2>&1`; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "$(PYTHON) has no venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
