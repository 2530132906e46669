# The set-up lives in .venv and nowhere else. ARGS= passes flags to the program behind a target, PYTHON= chooses Python.
PYTHON ?= python3
FIRST ?= 01_ssm_discretization.ipynb
BIN := .venv/bin
QUIET := --LabApp.news_url=None --LanguageServerManager.autodetect=False
# What a notebook keeps of its metadata: the kernel, the name of the language, the tags of its cells.
CLEAN := --ClearMetadataPreprocessor.enabled=True \
	--ClearMetadataPreprocessor.preserve_nb_metadata_mask="{'kernelspec', ('language_info', 'name')}" \
	--ClearMetadataPreprocessor.preserve_cell_metadata_mask="{'tags'}"
HOME_HERE := $(CURDIR)/.venv/home

export PATH := $(CURDIR)/$(BIN):$(PATH)
export JUPYTER_CONFIG_DIR := $(HOME_HERE)/jupyter
export JUPYTER_DATA_DIR := $(HOME_HERE)/jupyter-data
export JUPYTER_RUNTIME_DIR := $(HOME_HERE)/jupyter-runtime
export IPYTHONDIR := $(HOME_HERE)/ipython
export MPLCONFIGDIR := $(HOME_HERE)/matplotlib
export TRITON_CACHE_DIR := $(HOME_HERE)/triton
export NUMBA_CACHE_DIR := $(HOME_HERE)/numba
export TORCHINDUCTOR_CACHE_DIR := $(HOME_HERE)/inductor
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
test notebooks: export VIMLEARN_PROGRESS := off

.PHONY: help lab test train bench notebooks clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

lab: .venv/ready  ## open the course in JupyterLab, at chapter 01
	$(BIN)/jupyter lab --ServerApp.root_dir=notebooks --LabApp.default_url=/lab/tree/$(FIRST) $(QUIET) $(ARGS)

test: .venv/ready  ## ruff, the tests, and every notebook against its stored outputs
	$(BIN)/ruff check .
	$(BIN)/python -m pytest $(ARGS)
	$(BIN)/python -m pytest --nbval --nbval-current-env notebooks

train: .venv/ready  ## train the built-in model on the handwritten digits
	$(BIN)/vimlearn train $(ARGS)

bench: .venv/ready  ## time the scan and the smallest Vim on this CPU against their peers
	$(BIN)/python -m pip install -q --no-deps -r benchmarks/peers.txt
	$(BIN)/python benchmarks/scan_cpu.py $(ARGS)

notebooks: .venv/ready  ## run every notebook again and store its outputs
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False $(CLEAN) notebooks/*.ipynb

clean:  ## remove the set-up and everything that was built
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vimlearn needs Python 3.11 or newer, and this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12")'
	@echo "Setting up .venv: minutes the first time, PyTorch is the large part."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt torch setuptools wheel
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e ".[lab,test]"
	$(BIN)/jupyter labextension disable --level=sys_prefix @jupyterlab/apputils-extension:announcements
	@touch $@
