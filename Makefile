# One word per chore. `make demo` needs Python 3.10 or newer, and no Node.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check fix build clean

demo: .venv/.demo  ## run the quickstart notebook and print each question and answer
	$(BIN)/python examples/run.py examples/quickstart.ipynb

test: .venv/.test  ## run all tests
	$(BIN)/python -m pytest -q tests/browser
	$(BIN)/python -m pytest -q --ignore=tests/browser

check: .venv/.dev  ## lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: .venv/.dev  ## repair what lint and format can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: .venv/.dev  ## make the wheel and the sdist in dist/
	$(BIN)/python -m build

clean:  ## remove what tests, checks and builds leave; .venv stays
	rm -rf dist build .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# .venv/.NAME says that the extra NAME is installed as pyproject.toml and constraints.txt ask.
.venv/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -c constraints.txt -e '.[$*]'
	touch $@
