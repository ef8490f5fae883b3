# Setup, tests and the demo. Needs Linux, Python 3.11, make and git; everything else is installed into .venv.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
UV     := 0.13.8
FUZZ   ?= 5000

# Installs Debian's PACKAGE, unless one of PROGRAMS exists
INSTALL = for program in $(PROGRAMS); do command -v $$program && exit 0; done; \
	command -v apt-get >/dev/null || { echo "make $@ needs Debian's or Ubuntu's apt-get: install $(PACKAGE)"; exit 1; }; \
	[ "$$(id -u)" = 0 ] || { echo "make $@ needs root: sudo make $@"; exit 1; }; \
	apt-get update && apt-get install --yes --no-install-recommends $(PACKAGE)

.PHONY: demo test test-long fuzz browser postgres network pictures lint lock clean

$(VENV)/.installed: requirements.lock pyproject.toml
	@[ "$$(uname -s)" = Linux ] || { echo "Photon runs on Linux only, and this is $$(uname -s)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV)"
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: $(VENV)/.installed   ## a whole federation on this machine
	$(BIN)/photon demo

test: lint                 ## linters, types and all tests except the long ones
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: lint            ## tests marked long, which take too long for `make test`: at most an hour each
	$(BIN)/python -m pytest -m long -n 2 --dist loadfile --timeout 3600

fuzz: $(VENV)/.installed    ## untrusted manifests and headers, FUZZ of each kind from a new seed
	PHOTON_FUZZ=$(FUZZ) $(BIN)/python -m pytest -q -n 0 --timeout 0 tests/photon_core/test_fuzz.py

browser: PACKAGE := chromium
browser: PROGRAMS := chromium chromium-browser google-chrome
browser:                   ## installs Chromium, for the tests of the Prefect UI and of reports (skipped without it)
	@$(INSTALL)

postgres: PACKAGE := postgresql
postgres: PROGRAMS := postgres /usr/lib/postgresql/*/bin/postgres
postgres:                  ## installs PostgreSQL, for the tests of a Prefect server on PostgreSQL (skipped without it)
	@$(INSTALL)

network: PACKAGE := iproute2
network: PROGRAMS := ip
network:                   ## installs ip, for the tests that there is no telemetry (skipped without it, and unless root runs them)
	@$(INSTALL)

pictures: demo             ## README's pictures, from the demo; needs Chromium (make browser)
	$(BIN)/python docs/pictures/make.py photon-demo

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(VENV)/.installed   ## resolves pyproject.toml again
	$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --upgrade --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links -o requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
