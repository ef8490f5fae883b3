# Set-up, tests and the demo. Needs Linux, Python 3.11, make and git; everything else is installed into .venv.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
UV     := 0.13.8
FUZZ   ?= 5000

# Debian's PACKAGE, unless one of PROGRAMS is there
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

test: lint                 ## everything that must hold
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: lint            ## what takes longer than fits into `make test`: tests marked long, an hour at most each
	$(BIN)/python -m pytest -m long -n 2 --dist loadfile --timeout 3600

fuzz: $(VENV)/.installed    ## manifests and headers of strangers, FUZZ of each kind from a new seed
	PHOTON_FUZZ=$(FUZZ) $(BIN)/python -m pytest -q -n 0 --timeout 0 tests/photon_core/test_fuzz.py

browser: PACKAGE := chromium
browser: PROGRAMS := chromium chromium-browser google-chrome
browser:                   ## Chromium, for the tests that look at the Prefect UI and at reports (skipped without)
	@$(INSTALL)

postgres: PACKAGE := postgresql
postgres: PROGRAMS := postgres /usr/lib/postgresql/*/bin/postgres
postgres:                  ## PostgreSQL, for the tests of a server that keeps its records there (skipped without)
	@$(INSTALL)

network: PACKAGE := iproute2
network: PROGRAMS := ip
network:                   ## ip, for the tests that nothing calls home (skipped without, and unless root runs them)
	@$(INSTALL)

pictures: demo             ## README's pictures, from the demo; needs Chromium (make browser)
	$(BIN)/python docs/pictures/make.py photon-demo

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(VENV)/.installed   ## resolve pyproject.toml anew
	$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --upgrade --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links -o requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
