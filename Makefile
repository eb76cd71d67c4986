# Everything runs in .venv, which is created on demand. Only make and Python 3.11+ are needed.
PYTHON ?= python3
BIN := .venv/bin

# Extra options for pytest: make test OPTIONS='-k idempotency'
OPTIONS ?=

.PHONY: demo test test-slow test-lowest test-wheel lint format docs bench clean

demo: .venv/.demo
	$(BIN)/python -m example_app

test: .venv/.test
	$(BIN)/python -m pytest -n auto -m 'not slow' $(OPTIONS)

# make test-python-3.13 runs the same tests on another Python, if uv can find or install it.
test-python-%: .venv/.lowest
	$(BIN)/uv venv --quiet --clear --python $* .venv/python-$*
	$(BIN)/uv pip install --quiet --python .venv/python-$* --editable . --group test
	.venv/python-$*/bin/python -m pytest -n auto -m 'not slow' $(OPTIONS)

# The slow tests, several seconds each: real clients and servers, the demo, generated calls.
test-slow: .venv/.test .venv/.clients
	$(BIN)/python -m pytest -n auto -m slow

# With the lowest versions that pyproject.toml allows: all tests but those that kill processes, drive a browser or
# generate calls.
test-lowest: .venv/.lowest .venv/.clients
	rm -rf .venv/lowest
	$(BIN)/uv venv --quiet --python $(BIN)/python .venv/lowest
	$(BIN)/uv pip install --quiet --python .venv/lowest --resolution lowest-direct --editable '.[celery,demo,storage,swagger]' --group test
	ln -s ../clients .venv/lowest/clients
	.venv/lowest/bin/python -m pytest -n auto -k 'not killed and not browser and not schemathesis'

# The demo with the built wheel, in a new environment outside the source tree.
test-wheel: .venv/bin/python
	rm -rf .venv/wheel .venv/dist .venv/tour
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir .venv/dist .
	$(BIN)/python -m venv .venv/wheel
	.venv/wheel/bin/python -m pip install --quiet --disable-pip-version-check "$$(ls .venv/dist/*.whl)[demo]"
	mkdir .venv/tour && cp -r example_app .venv/tour && cd .venv/tour && ../wheel/bin/python -m example_app

lint: .venv/.test .venv/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The site, in .venv/docs. The reference comes from the code, so every page is read again.
docs: .venv/.docs
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --nitpicky --quiet docs .venv/docs

# Takes some minutes. "python -m tests.benchmarks create results" runs only these two benchmarks.
bench: .venv/.test
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf .venv

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed; name one with: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'

# Clients that conflict with other packages: openai-batch brings a package "tests". Node's client needs node and npm.
.venv/.clients: .venv/bin/python
	$(BIN)/python -m pip install --quiet --target .venv/clients/otari-0.3.0 'otari==0.3.0'
	$(BIN)/python -m pip install --quiet --target .venv/clients/litellm litellm
	$(BIN)/python -m pip install --quiet --target .venv/clients/openai-batch --no-deps openai-batch
	@if command -v node >/dev/null && command -v npm >/dev/null; then \
		mkdir -p .venv/clients/node && npm install --silent --no-audit --no-fund --prefix .venv/clients/node openai; \
	fi
	@touch $@

.venv/.demo: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

.venv/.test .venv/.lint .venv/.docs .venv/.lowest: .venv/.%: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable . --group $*
	@touch $@
