# make test                     run the tests
# make lint                     check lint and format
# make reproduce PROFILE=smoke  mock survey and all training stages into runs/smoke
#                               profiles: smoke, laptop, laptop_pixel, paper, gpu
#                DATA=survey.h5 another survey than the mock one
# Each installs what it needs into .venv, once. Nothing but Python 3.11 or newer is needed.

PROFILE ?= laptop
# The first Python that is new enough; asked to run, since a version manager's stub may not.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed

# Sizes of the mock survey by profile: training and test stars.
STARS_smoke := 600 200
STARS_laptop := 20000 5000
STARS_laptop_pixel := $(STARS_laptop)
STARS_paper := 102747 25681
STARS_gpu := $(STARS_paper)
STARS := $(STARS_$(PROFILE))
PROFILES := smoke, laptop, laptop_pixel, paper or gpu
SURVEY := runs/$(PROFILE)/survey.h5

.PHONY: install test lint reproduce clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer: name one, make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,notebooks]'
	@touch $@

test: $(INSTALLED)
	$(BIN)/pytest

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# What is complete is not run again: each stage leaves a file `complete` in its folder at its end.
RUN := runs/$(PROFILE)
STAGE_1 := $(RUN)/1_basemodel_synthetic
STAGE_2 := $(RUN)/2_realfinetune_firsthalf
STAGE_3 := $(RUN)/3_fefinetune_chunk
BASELINE := $(RUN)/basic_NN
DATA ?= $(SURVEY)
CHECK = @test -f $@ || { echo "$(@D) was interrupted: run make again"; exit 1; }
ARGUMENTS = --profile $(PROFILE) --data $(DATA) --output $(@D)

reproduce: $(INSTALLED)
	@test -n "$(STARS)" || { echo "unknown PROFILE=$(PROFILE): $(PROFILES)"; exit 1; }
	@$(MAKE) --no-print-directory $(STAGE_3)/complete $(BASELINE)/complete
	@echo "$(RUN) is complete"

$(SURVEY):
	$(BIN)/python dataset/create_mock_survey.py --stars $(word 1,$(STARS)) \
	  --test-stars $(word 2,$(STARS)) --seed 1 --output $@

$(STAGE_1)/complete: | $(DATA)
	$(BIN)/python training/1_basemodel_synthetic/trainingAPOGEEGPU.py $(ARGUMENTS)
	$(CHECK)

$(STAGE_2)/complete: $(STAGE_1)/complete
	$(BIN)/python training/2_realfinetune_firsthalf/finetuningAPOGEE.py $(ARGUMENTS) \
	  --checkpoint $(STAGE_1)
	$(CHECK)

$(STAGE_3)/complete: $(STAGE_2)/complete
	$(BIN)/python training/3_fefinetune_chunk/finetuningAPOGEE.py $(ARGUMENTS) \
	  --checkpoint $(STAGE_2)
	$(CHECK)

$(BASELINE)/complete: | $(DATA)
	$(BIN)/python training/basic_NN/TrainingNN.py $(ARGUMENTS)
	$(CHECK)

clean:
	rm -rf .venv build
