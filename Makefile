# Two commands do everything from a fresh clone: `make demo` and `make test`.
# Needs Python 3.11 or newer with venv, nothing else; about 6 GB of disk and a few minutes for the
# first installation.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-newest test-oldest test-large test-ray fuzz soak gpu docs lint install clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   train a small detector on handwritten digits and draw what it finds"
	@echo "make test   lint, type-check and test"
	@echo "make test-newest, test-oldest  the same with the newest, and the oldest packages allowed"
	@echo "make test-large  data sets of full size: minutes, 4 GB of memory, 1 GB of disk"
	@echo "make test-ray    inference by workers of Ray that are killed; installs Ray: PICTURES=200"
	@echo "make fuzz   5,000 broken files of every kind: SEED=1 COUNT=5000, some minutes"
	@echo "make soak   long runs and random kills, most of an hour: MINUTES=20 PICTURES=20000 KILLS=10"
	@echo "make gpu    correctness, speed and training on a GPU, in some eight minutes"
	@echo "make docs   these pages as a site, in site/"
	@echo "make lint   lint and type-check only"
	@echo "make clean  remove .venv; data and runs stay"

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	@echo "installing into .venv (once): about 6 GB, some minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@# After opencv-python-headless, whose files it replaces by its own of the same version.
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps \
		opencv-contrib-python-headless
	@touch $@

demo: .venv/installed
	@$(BIN)/python -m tools.demo

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 --dist worksteal

# The ranges of pyproject.toml at both ends, each in an environment of its own.
test-newest test-oldest: test-%: .venv-%/installed
	.venv-$*/bin/pytest -n 2 --dist worksteal

.venv-newest/installed: RESOLUTION := highest
.venv-oldest/installed: RESOLUTION := lowest-direct
.venv-newest/installed .venv-oldest/installed: pyproject.toml
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check uv
	$(@D)/bin/uv pip install --quiet --python $(@D) --resolution $(RESOLUTION) -e ".[dev]"
	@# As above: of the version that opencv-python-headless has.
	cv2=$$($(@D)/bin/pip freeze | sed -n s/^opencv-python-headless/opencv-contrib-python-headless/p) && \
		$(@D)/bin/uv pip install --quiet --python $(@D) --no-deps "$$cv2"
	@touch $@

test-large: .venv/installed
	$(BIN)/pytest -m large -s

test-ray: .venv/installed
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray]"
	$(BIN)/pytest -m ray -s tests/examples

fuzz: .venv/installed
	$(BIN)/pytest -m fuzz -s tests/fuzz

soak: .venv/installed
	$(BIN)/pytest -m soak -s tests/soak

gpu: .venv/installed
	$(BIN)/python -m tools.gpu_check

docs: .venv/installed
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-newest .venv-oldest .mypy_cache .pytest_cache .ruff_cache .hypothesis
