PYTHON  ?= python3
# notebooks tested side by side, one thread each
WORKERS ?= 2

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check
PY   := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
KEY  := $(PY)-$(shell cat settings.ini setup.py pyproject.toml | cksum | cut -d' ' -f1)
RUN  := $(VENV)/.run-$(KEY)
DEV  := $(VENV)/.dev-$(KEY)
NEWEST := .newest/.done-$(KEY)
OLDEST := .oldest/.done-$(KEY)

.PHONY: help demo test test-one test-oldest lab sync readme clean check-sync check-style check-pytest check-notebooks check-smoke
.NOTPARALLEL:

help:
	@echo 'make demo    train and show a model on the embedded scenes, about a minute'
	@echo 'make test    every check, as the continuous integration runs it'
	@echo 'make test-one T=tests/test_models.py    one file of tests, or one test in it'
	@echo 'make test-oldest    the tests with the oldest versions that settings.ini allows'
	@echo 'make lab     JupyterLab on nbs/'
	@echo 'make sync    format, export the modules, clean the notebooks, write README.md'
	@echo 'make readme  write README.md only'
	@echo 'make clean   remove what the other targets wrote, but not $(VENV)'

demo: $(RUN)
	$(BIN)/ctxseg demo

test: check-sync check-style check-pytest check-notebooks check-smoke

test-one: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest "$(T)"

lab: $(DEV)
	$(BIN)/jupyter lab nbs

sync: $(DEV)
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format --quiet
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py nbs/index.ipynb README.md

readme: $(DEV)
	$(BIN)/python tools/readme.py nbs/index.ipynb README.md

clean:
	rm -rf .newest .newest.json .oldest .sync build dist demo _docs _proc nbs/nbdev.yml
	find ctxseg_nb nbs tests tools \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# Modules, notebooks and README are made afresh in a copy, so that a working tree with edits is compared but never changed.
check-sync: $(DEV)
	@rm -rf .sync && mkdir -p .sync/ctxseg_nb && cp -R nbs settings.ini .sync && cp ctxseg_nb/py.typed .sync/ctxseg_nb
	@cd .sync && ../$(BIN)/nbdev_export && ../$(BIN)/nbdev_clean && ../$(BIN)/python ../tools/readme.py nbs/index.ipynb README.md
	@stale=; for path in nbs ctxseg_nb README.md; do diff -r -x __pycache__ -x '.*' $$path .sync/$$path || stale=1; done; \
	 test -z "$$stale" || { echo 'the lines with < are not what the notebooks give (>): run make sync'; exit 1; }
	@rm -rf .sync

check-style: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy ctxseg_nb

# an environment of its own, with the lower bound of every requirement that has one
test-oldest: $(OLDEST)
	OMP_NUM_THREADS=1 .oldest/bin/python -m pytest -q -n $(WORKERS) --dist worksteal

check-pytest: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# a process for each notebook, so that none leans on what another left behind
check-notebooks: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python tools/test_notebooks.py $(WORKERS) $$(find nbs -name '*.ipynb' -not -path '*/.*' | sort)

check-smoke: $(DEV) $(NEWEST)
	$(BIN)/python tests/smoke.py
	PYTHONPATH=.newest $(BIN)/python tests/smoke.py

$(VENV)/lib/python$(PY):
	$(PYTHON) -m venv --clear $(VENV)

$(RUN): | $(VENV)/lib/python$(PY)
	@echo 'installing into $(VENV); the first time this takes a few minutes'
	$(PIP) install -q --no-compile -e .
	@touch $@

$(DEV): | $(VENV)/lib/python$(PY)
	@echo 'installing into $(VENV) with the development tools; the first time this takes a few minutes'
	$(PIP) install -q --no-compile -e '.[dev]'
	@touch $@ $(RUN)

# The newest fastai needs a newer fastcore than nbdev 2 allows: what pip would upgrade goes beside the environment.
$(NEWEST): $(DEV)
	@rm -rf .newest
	$(PIP) install -q --dry-run --upgrade --report .newest.json fastai
	$(PIP) install -q --no-compile --no-deps --target .newest $$($(BIN)/python -c 'import json; \
	  print(*["{name}=={version}".format(**o["metadata"]) for o in json.load(open(".newest.json"))["install"]])')
	@touch $@

$(OLDEST):
	@echo 'installing the oldest versions into .oldest; this takes a few minutes'
	$(PYTHON) -m venv --clear .oldest
	@.oldest/bin/python -c 'import re; print(*("==".join(r) for r in re.findall(r"([\w-]+)>=([\d.]+)", open("settings.ini").read())), sep="\n")' > .oldest/oldest.txt
	.oldest/bin/python -m pip --disable-pip-version-check install -q --no-compile -c .oldest/oldest.txt -e '.[dev]'
	@touch $@
