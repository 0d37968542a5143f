# `make` sets up everything and builds the readout of the configured graph; `make test` sets up everything and tests it.
PYTHON ?= python3
CORES ?= all
VENV := .venv
INSTALLED := $(VENV)/.installed
SERVERS := tests/servers/node_modules/.installed

.DEFAULT_GOAL := readout
.PHONY: readout test check clean

readout: $(INSTALLED)
	$(VENV)/bin/snakemake --cores $(CORES)

test: check $(SERVERS)
	$(VENV)/bin/pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

# Two of the benchmarks have the names of a script and of a module of the tests: mypy takes them in a call of their own.
check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy benchmarks
	$(VENV)/bin/snakefmt --check Snakefile rules
	$(VENV)/bin/snakemake --lint

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "amygdala needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check --quiet --requirement requirements.txt
	touch $@

# The reference memory server and a gateway, which tests run; without npm those tests skip and say so.
$(SERVERS): tests/servers/package-lock.json
	if command -v npm >/dev/null; then npm ci --prefix tests/servers --ignore-scripts --no-audit --no-fund --silent && touch $@; fi

clean:
	rm -rf $(VENV) .snakemake logs tests/servers/node_modules
