# Each target does all of its set-up, on a machine that has only Python >= 3.11 and make:
#   make train    make test    make
# Another build of torch: make train TORCH="torch==2.13.0 --index-url ..."

SHELL := bash
PYTHON ?= python3
VENV ?= .venv
TORCH ?= $(shell grep '^torch==' constraints.txt)
# One environment for everything, installed in a minute or two: no test skips for want of what pip can bring.
comma := ,
EXTRAS ?= all
PYTEST_WORKERS ?= 2
ARGS ?=
TOUR ?= logs/tour

BENCHMARKS := core_speed add_speed buffer_files gradient_speed relabel_cost end_to_end vector_env collecting footprint env_speed products scaling compiled_update
BENCH_RESULTS ?= benchmarks/results

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
RUN := OMP_NUM_THREADS=1 $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help setup browser train tour pretrained test test-expensive bench search-postgres report docs format lint type

help:
	@echo "make setup           install into $(VENV) (the others do it themselves)"
	@echo "make train           train HIPI-SAC on PointFourRooms-v0: table and picture at the end (ARGS for zoo/train.py)"
	@echo "make tour            four to eight minutes: training, video, comparison and report of it, all in $(TOUR)"
	@echo "make test            the test suite (ARGS for pytest)"
	@echo "make test-expensive  the tests that train for minutes, into benchmarks/results/expensive_tests.txt"
	@echo "make bench           all measurements of speed and memory, into benchmarks/results (ARGS=--quick to try)"
	@echo "make search-postgres two workers search on a private PostgreSQL (ARGS for zoo/train.py)"
	@echo "make report          one HTML page from the results of zoo/benchmark.py (ARGS for zoo/report.py)"
	@echo "make pretrained      train the policies that come with the package again"
	@echo "make docs            the site, into docs/_build/html; warnings are errors, links are checked"
	@echo "make format          sort imports and format"
	@echo "make lint type       what CI checks before the tests"

setup: $(STAMP)

train: $(STAMP)
	$(RUN) zoo/train.py --algo hipi_sac --env PointFourRooms-v0 --seed 0 --log-interval 50 -P $(ARGS)

# Fixed goals: they are learned in seconds, and the methods differ.
tour: $(STAMP)
	$(RUN) zoo/train.py --algo hipi_sac --env PointFixedGoals-v0 --seed 0 -n 5000 --eval-freq 1000 --log-interval 50 -f $(TOUR) -P
	$(RUN) zoo/enjoy.py --env PointFixedGoals-v0 -f $(TOUR) --tasks all --record $(TOUR)/video.mp4 --fps 10 --plot $(TOUR)/trajectories.png
	$(RUN) zoo/benchmark.py --envs PointFixedGoals-v0 --methods none,random,hipi --seeds 3 --jobs 2 -n 5000 --eval-freq 1000 \
		--folder $(TOUR)/benchmark
	$(RUN) zoo/plots.py --folder $(TOUR)/benchmark --out $(TOUR)/figures
	$(RUN) zoo/report.py --folder $(TOUR)/benchmark --runs "$$(ls -td $(TOUR)/hipi_sac/*/ | head -n 1)" --out $(TOUR)/report.html
	@echo "The tour is over. Open $(TOUR)/report.html and $(TOUR)/video.mp4; figures are in $(TOUR)/figures."

test: $(STAMP) browser
	$(RUN) -m pytest -n $(PYTEST_WORKERS) -rsfE $(ARGS)

# The policies that come with the package: some twenty minutes on one core. The films for the site come last.
pretrained: $(STAMP)
	rm -rf logs/pretrained
	set -e; train() { $(RUN) zoo/train.py --algo hipi_sac --env $$1 --seed 0 -n $$2 --eval-tasks $$3 --no-picture -f logs/pretrained; \
		$(RUN) zoo/export.py logs/pretrained/hipi_sac/$$1_1; }; \
	train PointFixedGoals-v0 15000 32; train PointFourRooms-v0 25000 50; train SawyerReach-v0 15000 50; \
	train WalkerLinear-v0 30000 50
	MUJOCO_GL=egl $(RUN) docs/pretrained_gifs.py

# Pages are looked at in Chromium. Where it is missing and may be installed, it is; elsewhere the tests of pages are skipped, and
# the list at the end says what to install.
browser:
	@command -v chromium chromium-browser google-chrome > /dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null || \
		{ apt-get update -q && apt-get install -y -q --no-install-recommends chromium; } || true

test-expensive: $(STAMP)
	set -o pipefail; $(RUN) -m pytest -n $(PYTEST_WORKERS) -m expensive -q --no-header --disable-warnings -rpsfE --durations=0 \
		$(ARGS) | tee benchmarks/results/expensive_tests.txt

bench: $(STAMP)
	set -e; for name in $(BENCHMARKS); do $(RUN) benchmarks/$$name.py --json $(BENCH_RESULTS)/$$name.json $(ARGS); done

search-postgres: $(STAMP)
	$(BIN)/python -c 'import psycopg' 2> /dev/null || $(BIN)/pip install -c $(VENV)/constraints.txt 'psycopg[binary]'
	$(RUN) zoo/search_postgres.py -- $(or $(ARGS),-n 1000 --search-space small)

report: $(STAMP)
	$(RUN) zoo/report.py $(ARGS)

docs: $(STAMP)
	$(RUN) -m sphinx -q -W --keep-going -b html docs docs/_build/html
	$(RUN) docs/check_links.py docs/_build/html
	@echo "Site: docs/_build/html/index.html"

format: $(STAMP)
	$(BIN)/ruff check --select I --fix .
	$(BIN)/black .

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/black --check .

type: $(STAMP)
	$(BIN)/mypy

# torch comes first and alone: whatever build it is, the ranges of the other packages leave it there. The constraint on it is
# dropped for the second step, so that it may be another one.
$(STAMP): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is missing or older than 3.11. Say which one: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/pip install -c $(VENV)/constraints.txt setuptools
	$(BIN)/pip install -c $(VENV)/constraints.txt $(TORCH)
	$(BIN)/pip install -c $(VENV)/constraints.txt --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $@
