# Every target makes the virtual environment it needs.
PYTHON ?= python3
LEGACY_PYTHON ?= python3.11
VENV ?= .venv
LEGACY_VENV ?= .venv-legacy
DEMO_OUT ?= demo-output
# A process for each core, up to what memory holds; a module's tests share their fixtures.
TEST_OPTIONS ?= -n auto --maxprocesses=4 --dist loadfile --durations=20

# TensorFlow's start-up chatter would bury what the commands themselves say.
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo docs test test-legacy lint package fuzz kill soak benchmarks corpus paper-table harden-cifar10 clean

demo: $(VENV)/.installed  ## train, attack, defend and export on packaged images
	$(VENV)/bin/fd-keras demo --out $(DEMO_OUT)

# Four processes keep two cores busy: threads of theirs would only wait for each other.
test test-legacy: export TF_NUM_INTRAOP_THREADS ?= 1
test test-legacy: export OPENBLAS_NUM_THREADS ?= 1

test: $(VENV)/.installed  ## tests on the main stack
	$(VENV)/bin/python -m pytest $(TEST_OPTIONS)

test-legacy: $(LEGACY_VENV)/.installed  ## tests on TensorFlow 2.15.1 with tensorflow-addons
	$(LEGACY_VENV)/bin/python -m pytest $(TEST_OPTIONS)

docs: $(VENV)/.installed-docs  ## the pages of docs/, in build/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

# --core installs the wheel into a fresh environment; --all the sdist, and the extras, too.
PACKAGE_OPTIONS ?= --core
package: $(VENV)/.installed  ## build the distributions into dist/, and check them
	rm -rf dist build/lib build/bdist.* fd_keras.egg-info
	$(VENV)/bin/python -m build --outdir dist
	$(VENV)/bin/python tests/helpers/check_package.py dist $(PACKAGE_OPTIONS)

benchmarks: $(VENV)/.installed  ## speed and memory against their goals; minutes, on an idle machine
	$(VENV)/bin/python -m benchmarks.performance

CALLS ?= 1000000
fuzz: $(VENV)/.installed  ## call and load what is wrong until CALLS are made; resumes
	$(VENV)/bin/python -m benchmarks.reliability.fuzz --calls $(CALLS)

KILLS ?= 20
kill: $(VENV)/.installed  ## kill each command KILLS times, fill its disk, run it twice at once; resumes
	$(VENV)/bin/python -m benchmarks.reliability.kill --kills $(KILLS)

MINUTES ?= 60
soak: $(VENV)/.installed  ## four threads on images of changing sizes
	$(VENV)/bin/python -m benchmarks.reliability.soak --minutes $(MINUTES)

corpus: $(VENV)/.installed  ## apply, compress, calibrate and inspect over your files in DIR=...
	$(VENV)/bin/python tests/helpers/corpus.py "$(DIR)"

paper-table: $(VENV)/.installed  ## every attack and defence on ../shared; resumes; hours
	$(VENV)/bin/python -m experiments.paper_table

harden-cifar10: $(VENV)/.installed  ## harden ResNet-14 on ../shared and attack it; resumes; hours
	$(VENV)/bin/python -m experiments.harden_cifar10

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e ".[all,dev]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet -e ".[docs]"
	touch $@

$(LEGACY_VENV)/.installed: setup.cfg pyproject.toml
	$(LEGACY_PYTHON) -m venv $(LEGACY_VENV)
	$(LEGACY_VENV)/bin/python -m pip install --quiet -e ".[all,dev,addons]" "tensorflow==2.15.1"
	touch $@

clean:
	rm -rf $(VENV) $(LEGACY_VENV) $(DEMO_OUT) dist
