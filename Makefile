# make demo   train on built-in data and print whether pseudo-labels helped
# make test   every check
# Both first make a virtual environment (VENV) with PYTHON and install into it, where that is not done yet.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CHROMIUM := $(shell command -v chromium || command -v chromium-browser)
APT_CHROMIUM = [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >&2
PACKAGING = settings.ini setup.py pyproject.toml constraints.txt

.PHONY: help demo test check-sync check-notebooks check-style check-tests browser sync readme docs check-docs bench lab clean-venv

help:
	@echo "make demo        train on built-in data and print whether pseudo-labels helped (writes $(DEMO)/)"
	@echo "make test        every check: notebooks in step with the package, notebooks, style, layers, tests"
	@echo "make browser     what the tests in a browser need: JupyterLab, Voilà, Debian's Chromium; their pictures go to _screenshots/"
	@echo "make docs        every notebook as a page, in _docs/html"
	@echo "make check-docs  look at these pages in Chromium; what is found goes to _docs/check.json"
	@echo "make bench       the speed ratios"
	@echo "make sync        bring modules, stored notebooks and README in step with what you edited in nbs/"
	@echo "make readme      README.md from nbs/index.ipynb"
	@echo "make lab         JupyterLab"
	@echo "make clean-venv  remove $(VENV)"
	@echo "PYTHON=python3.12 chooses the Python, VENV=folder the virtual environment."

demo: $(VENV)/.installed
	$(BIN)/pseudolabel-train --demo --output-dir $(DEMO)

test: check-sync check-notebooks check-style check-tests

check-sync: $(VENV)/.installed-dev
	$(BIN)/python tools/sync.py --check

check-notebooks: $(VENV)/.installed-dev
	MPLBACKEND=agg OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2 --timing

check-style: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports

check-tests: $(VENV)/.installed-dev $(if $(CHROMIUM),$(VENV)/.installed-lab)
	@$(if $(CHROMIUM),,echo "LEFT OUT: the tests in a browser, since there is no Chromium here (make browser)")
	MPLBACKEND=agg $(BIN)/python -m pytest -q

browser: $(VENV)/.installed-dev $(VENV)/.installed-lab
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { $(APT_CHROMIUM); } || { echo "error: Chromium is missing and cannot be installed from here; install it so that \`chromium\` is on the PATH (Debian: apt-get install chromium)" >&2; exit 1; }

sync: $(VENV)/.installed-dev
	$(BIN)/python tools/sync.py

readme: $(VENV)/.installed-dev
	$(BIN)/python docs/readme.py

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/build.py

check-docs: browser $(VENV)/.installed-docs
	$(BIN)/python tools/check_docs.py

bench: $(VENV)/.installed
	$(BIN)/python nbs/benchmarks/bench.py

lab: $(VENV)/.installed-lab
	$(BIN)/jupyter lab nbs

# A stamp newer than the packaging files says that an installation is up to date.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: PYTHON=$(PYTHON) is not Python 3.10 or newer (found: $$($(PYTHON) --version 2>&1 | tail -1)); install one and name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv "$(VENV)"
	@touch "$@"

$(VENV)/.installed: $(VENV)/.made $(PACKAGING)
	$(PIP) --editable .
	@touch "$@"

$(VENV)/.installed-%: $(VENV)/.made $(PACKAGING)
	$(PIP) --editable ".[$*]"
	@touch "$@" "$(VENV)/.installed"

clean-venv:
	rm -rf "$(VENV)"
