# On a fresh machine with Python and make:
#   make train                      trains CartPole-v1 and draws a learning curve (of pixel tasks also a film: dream and truth)
#   make train ENV=ALE/Pong-v5      any env of gymnasium; SEED=1, N=100000 (steps), ARGS="..." (more options of rl_zoo3.train)
#   make test                       runs the tests

PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
PY := $(VENV)/bin/python

ENV ?= CartPole-v1
SEED ?= 0
N ?=
ARGS ?=
LOGS ?= logs
EVAL ?= --eval-freq 1000 --eval-episodes 20 --n-eval-envs 10
# a game of Atari is long and full of frames: evaluate it rarely
ifneq (,$(findstring ALE/,$(ENV))$(findstring NoFrameskip,$(ENV)))
EVAL := --eval-freq 250000 --eval-episodes 5
endif
REPORT_ARGS ?=
PYTEST_ARGS ?=

SOURCES = sb3_dreamer tests _backend.py _sb3_dreamer_zoo.py $(wildcard examples benchmarks)
PACKAGING = setup.cfg pyproject.toml _backend.py _sb3_dreamer_zoo.py

.PHONY: benchmark-quick train test test-slow test-oldest lint type format check-codestyle commit-checks docs clean install

train: $(VENV)/.installed
	$(PY) -m rl_zoo3.train --algo dreamer --env $(ENV) --progress --seed $(SEED) -f $(LOGS) --log-interval 10 \
		$(EVAL) $(if $(N),-n $(N)) $(ARGS)
	@$(PY) -m sb3_dreamer.zoo report --env $(ENV) -f $(LOGS) $(REPORT_ARGS)

# as many processes as cores, one thread each: more threads only wait for one another
test: $(VENV)/.installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -n auto $(PYTEST_ARGS)

test-slow: $(VENV)/.installed
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

# the lower bounds of setup.cfg
test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(OLDEST)/bin/python -m pytest -n auto $(PYTEST_ARGS)

# twenty minutes on two cores: do some runs of docs/results.md come out the same here?
benchmark-quick: $(VENV)/.installed
	$(PY) -m benchmarks.learning quick

lint: $(VENV)/.installed
	$(PY) -m ruff check $(SOURCES)

type: $(VENV)/.installed
	$(PY) -m mypy sb3_dreamer tests

format: $(VENV)/.installed
	$(PY) -m ruff check --select I --fix $(SOURCES)
	$(PY) -m black $(SOURCES)

check-codestyle: $(VENV)/.installed
	$(PY) -m ruff check --select I $(SOURCES)
	$(PY) -m black --check $(SOURCES)

commit-checks: format type lint

docs: $(VENV)/.installed-docs
	$(PY) -m sphinx -W -b html docs docs/_build/html

clean:
	rm -rf build dist *.egg-info docs/_build .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

install: $(VENV)/.installed

# $(call install,venv,constraints,extras)
define install
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@echo "Installing sb3-dreamer into $(1) (the first time this takes some minutes) ..."
	@$(1)/bin/python -m pip install -qq --disable-pip-version-check -c $(2) -e '.[$(3)]'
	@touch $@
endef

$(VENV)/.installed: constraints.txt $(PACKAGING)
	$(call install,$(VENV),constraints.txt,extra$(comma)tests)

$(VENV)/.installed-docs: $(VENV)/.installed
	$(call install,$(VENV),constraints.txt,docs)

$(OLDEST)/.installed: constraints-oldest.txt $(PACKAGING)
	$(call install,$(OLDEST),constraints-oldest.txt,extra$(comma)tests)

comma := ,
