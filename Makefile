# make demo: the whole pipeline on real Korean text. make test: lint, types, tests. Both set up .venv by themselves.
# make adapt: a model of English is trained, and adapted to Korean with new tokens, in two phases; then it learns to chat.
# make test-slurm: sweeps on a real Slurm, installed by apt-get where it is lacking and this is root.
# make test-plan: the step of trainer=gpu of every architecture, planned for an H100 without one, in some minutes.
# make test-faults: hundreds of kills, signals and damaged files, for most of an hour.
PYTHON ?= python3
BIN := .venv/bin
.DELETE_ON_ERROR:
.PHONY: demo adapt test lint test-faults test-slurm test-gpu test-plan clean

.venv/.installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("ttukttak needs Python 3.11 or newer, this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@touch $@

demo: .venv/.installed
	$(BIN)/python train.py experiment=demo
	$(BIN)/python train.py experiment=demo_chat
	$(BIN)/python -m llm.demo

adapt: .venv/.installed
	$(BIN)/python train.py experiment=english
	$(BIN)/python train.py experiment=adapt_rows
	$(BIN)/python train.py experiment=adapt
	$(BIN)/python train.py experiment=demo_chat base=adapt name=adapt

test: lint
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-faults: .venv/.installed
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest tests/faults --storm
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest tests/test_sweep_driver.py tests/test_sweep_search.py tests/test_sweep_train.py -k "is_killed or both_ranks" --storm

test-slurm: .venv/.installed
	@command -v slurmctld slurmd munged sbatch >/dev/null || [ "$$(id -u)" != 0 ] || { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends slurm-wlm munge; }
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest tests/test_slurm_cluster.py --storm

test-gpu: .venv/.installed
	$(BIN)/python -m pytest -m gpu

test-plan: .venv/.installed
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest tests/test_gpu_plan.py --storm

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
