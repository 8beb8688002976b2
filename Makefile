# Every target sets up what it needs: a virtual environment in .venv, installed under constraints.txt, made once and reused. The demo
# needs the package alone; tests and checks add the extras.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEV := .venv/.with-extras
DIFFCLI := $(BIN)/diffcli
PIP := --disable-pip-version-check --progress-bar on -c constraints.txt
QUICK := not slow and not gpu
GIVEN := $(filter command environment,$(origin PYTHON))

.PHONY: help install dev demo test test-fast test-slow check format schema bench gpu-check judge clean
.DEFAULT_GOAL := help

help: ## say what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

install: $(STAMP) ## set up .venv with diffcli alone, which is all that the demo needs

dev: $(DEV) ## set up .venv with every extra and the development tools

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11"; echo "hint:  make $@ PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP) -e .
	touch $@

$(DEV): $(STAMP)
	$(BIN)/python -m pip install $(PIP) -e '.[dev]'
	touch $@

demo: $(STAMP) ## train on digits, draw, animate and score some: about 4 minutes on 2 cores with bf16, longer on others
	rm -rf runs/demo runs/demo-classifier
	$(DIFFCLI) train --preset digits-classifier --run-dir runs/demo-classifier
	$(DIFFCLI) train --preset digits --run-dir runs/demo
	$(DIFFCLI) sample --ckpt runs/demo --class all --n 100 --out runs/demo/samples.png
	$(DIFFCLI) gif --ckpt runs/demo --class all --n 10 --out runs/demo/denoise.gif
	$(DIFFCLI) fid --ckpt runs/demo --n 1000 --seed 1000 --features runs/demo-classifier --metrics fid,accuracy

test: $(DEV) ## the quick tests: 6 to 10 minutes on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '$(QUICK)' -n auto --dist loadgroup

test-fast: $(DEV) ## the tests of what changed since main
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '$(QUICK)' -n auto --dist loadgroup $$($(BIN)/python -m tests.changed)

test-slow: $(DEV) ## every test that this machine can run
	$(BIN)/python -m pytest -m ''

check: $(DEV) ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV) ## rewrite the code as `make check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(DEV) ## write the schema of presets anew, after a change of their keys
	$(BIN)/python -c 'import json; from diffcli.preset import Preset; print(json.dumps(Preset.model_json_schema(), indent=1))' > .schema.json
	mv .schema.json diffcli/lookup/preset.schema.json

bench: $(DEV) ## training and sampling beside other projects, the samplers, readers beside other readers: about 20 minutes
	$(BIN)/python -m pip install $(PIP) -e '.[bench]'
	$(BIN)/python benchmarks/train_speed.py
	$(BIN)/python benchmarks/sample_speed.py
	$(BIN)/python benchmarks/samplers.py
	$(BIN)/python benchmarks/data.py $(if $(CIFAR10),--cifar10 $(CIFAR10))
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/latents.py
	$(BIN)/python benchmarks/save_memory.py
	$(BIN)/python benchmarks/finetuning.py
	$(BIN)/python benchmarks/video.py
	$(BIN)/python benchmarks/upscaler_training.py
	$(BIN)/python benchmarks/tiled_upscaling.py

gpu-check: $(if $(GIVEN),,$(DEV)) ## ten minutes on a GPU: the `gpu` tests, speed and memory beside diffusers (PYTHON=one with torch)
	$(if $(GIVEN),$(PYTHON),$(BIN)/python) benchmarks/gpu_check.py $(OPTIONS)

judge: $(STAMP) ## how often an independent classifier agrees with the class of the demo's digits (DATA=folder of MNIST's IDX files)
	test -f runs/judge.safetensors || $(BIN)/python benchmarks/judge_digits.py train $(DATA) --weights runs/judge.safetensors
	$(DIFFCLI) sample --ckpt runs/demo --class all --n 1000 --out runs/demo/judged.npz
	$(BIN)/python benchmarks/judge_digits.py judge runs/demo/judged.npz --weights runs/judge.safetensors

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv .pytest_cache .hypothesis .ruff_cache .mypy_cache
