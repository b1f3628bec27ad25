# One word per chore. `make demo` needs Python 3.10 or newer. Node.js 20 builds the JupyterLab panel; without it
# everything else is installed.

PYTHON ?= python3
BIN := .venv/bin
NPM := $(if $(shell command -v node),$(shell command -v npm))
NPM_RUN := $(NPM) --prefix labextension run

.PHONY: demo test check fix panel build bench clean

demo: .venv/.demo .venv/.kernels  ## run the quickstart notebook and print each question and answer
	$(BIN)/python examples/run.py examples/quickstart.ipynb

test: .venv/.test .venv/.kernels  ## run all tests
	$(if $(NPM),$(NPM_RUN) test)
	$(BIN)/python -m pytest -q -p no:pytest_jupyter.jupyter_server tests/browser
	$(BIN)/python -m pytest -q --ignore=tests/browser

check: .venv/.dev  ## lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(if $(NPM),$(NPM_RUN) lint)

fix: .venv/.dev  ## repair what lint and format can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

panel:  ## build the JupyterLab panel again, for the environment in .venv
	$(BIN)/python -m pip install --no-deps -e .

build: .venv/.dev  ## make the wheels and the sdist in dist/
	$(BIN)/python -m build
	$(BIN)/python -m build --wheel --outdir dist kernels/compute

bench: .venv/.demo .venv/.oracle .venv/.kernels  ## measure speed and memory; wants 18 GB of disk, a quiet machine, 10 minutes
	$(BIN)/jupyter-gemma bench --dir .bench --out .bench/result.json
	$(BIN)/python -m jupyter_gemma.bench.plot .bench/result.json .bench/speed.png

clean:  ## remove what tests, checks and builds leave; .venv stays
	rm -rf dist build .bench .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# The compute kernels want a C++ compiler; everything works without them, slower.
.venv/.kernels: $(shell find kernels/compute -type f -not -name '*.pyc') | .venv/.python
	$(BIN)/python -m pip install ./kernels/compute || echo "No compute kernels: torch computes alone, slower."
	touch $@

# .venv/.NAME says that the extra NAME is installed as pyproject.toml and constraints.txt ask.
.venv/.%: pyproject.toml constraints.txt | .venv/.python
	$(BIN)/python -m pip install -c constraints.txt -e '.[$*]'
	@test -d jupyter_gemma/labextension || echo "Node.js is not installed: everything but the JupyterLab panel is."
	touch $@

.venv/.python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	touch $@
