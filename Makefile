# The commands of this project. `make quickstart` and `make test` are all the set-up there is.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
OLDEST := .venv-oldest
OLDEST_TESTS := $(addprefix tests/, \
	exporting/test_export.py::test_checkpoints_of_all_stages_and_ranks_give_the_logits_of_training \
	exporting/test_export.py::test_stage_1_and_the_final_model_are_exported_by_the_tool_and_load_everywhere \
	plugins/test_hf_trainer.py plugins/test_megatron_plugin.py \
	corpus/test_text_in.py corpus/test_own_language.py alignment/test_inflections.py alignment/test_table.py \
	alignment/test_loss.py stream/test_stream.py training/test_kernels.py reproduction/test_report.py \
	test_config.py test_doctor.py test_model.py test_structure.py)

.PHONY: quickstart test test-oldest check test-faults test-slurm test-gpu test-network test-harness test-long bench clean

quickstart: $(READY)  ## PreAlign and Joint Training on real text, from nothing; SCALE=0.1 shrinks it, CORPUS=file takes your text
	$(BIN)/python tools/quickstart.py

test: $(READY)  ## the tests that run anywhere, two files at a time; in their order, as the last files are short
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-oldest: $(OLDEST)/ready  ## those of the tests that touch every dependency, on the oldest versions that are supported
	TORCH_EXTENSIONS_DIR=$(CURDIR)/$(OLDEST)/extensions $(OLDEST)/bin/python -m pytest --numprocesses 2 --dist loadfile \
		--no-loadscope-reorder -k 'not compiled and not two_processes and not one_after_the_other' $(OLDEST_TESTS)

check: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-gpu: $(READY)  ## tests that need a GPU
	$(BIN)/python -m pytest -m gpu

test-network: $(READY)  ## tests that download Debian packages
	$(BIN)/python -m pytest -m network

test-faults: $(READY)  ## runs that are stopped, killed and resumed in every way
	$(BIN)/python -m pytest -m faults

test-slurm: $(READY)  ## the templates on a real SLURM of two nodes, on this machine
	$(BIN)/python -m pytest -m slurm

test-harness: $(READY)  ## lm-evaluation-harness on exported models; installs it first
	$(BIN)/python -m pip install --quiet 'lm-eval==0.4.13'  # tested; the extra `harness` holds the range
	$(BIN)/python -m pytest -m harness

test-long: $(READY)  ## tests that take minutes: the whole quickstart, small
	$(BIN)/python -m pytest -m long

$(READY): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(OLDEST)/ready: requirements-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet -r requirements-oldest.txt
	touch $@

bench: $(READY)  ## every benchmark: a table and runs/bench.json
	$(BIN)/python tools/bench.py

clean:  ## remove what the quickstart built; keeps the virtual environment
	rm -rf data/quickstart runs/quickstart
