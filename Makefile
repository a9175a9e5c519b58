# Set-up and the main jobs. `make demo` and `make test` are all that a new checkout needs; `make serve` then puts
# the demo's models online.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
DATA   ?= phantom
ROOT   ?=

.PHONY: setup browser demo serve test nightly experiments s3 check clean

setup: $(STAMP)

# The stamp is written last, so an interrupted set-up is taken up again.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked packages into $(VENV); this takes some minutes the first time."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(STAMP)

# For the page's tests: Debian's own Chromium, and the typeface that its pictures are looked at in.
browser:
	@command -v chromium >/dev/null \
		|| { apt-get update -q && apt-get install -yq --no-install-recommends chromium fonts-inter; }

demo: setup
	$(BIN)/python -m jobs demo --data $(DATA) $(if $(ROOT),--root "$(ROOT)")

serve: setup
	$(BIN)/python -m jobs serve

# One process a core; then two that each share one Ray among their tests, which mostly wait for it.
test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not cluster and not experiment"
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "cluster and not experiment"

experiments: setup
	$(BIN)/python -m pytest -m experiment

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

s3: setup
	$(BIN)/python -m tests.s3_server --data .local/s3 --port 8333

clean:
	rm -rf $(VENV) .local
