# make test                     run the tests
# make lint                     check lint and format
# make reproduce PROFILE=smoke  survey, training, evaluation, figures, attention, real stars and
#                               report into runs/smoke; goes on where it was interrupted
#                               profiles: smoke, laptop, laptop_pixel, paper, gpu
#                DATA=survey.h5 another survey than the mock one (with a RUN=folder of its own)
#                SEED=1         other weights and choices (with a RUN=folder of its own)
#                JOBS=1         one step at a time; smoke and laptop take two, given two cores
# make published                stage 3 and baseline once more, the epoch chosen as in the paper, with
#                               other stars' labels; evaluated beside those of `reproduce`
# make publish-figures          copy the figures of a run beside the scripts that draw them, and its
#                               stage 2, in half precision, to results/checkpoints
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

.PHONY: install test lint reproduce publish-figures clean published

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

# What is complete is not run again: each stage leaves a file `complete` in its folder at its end,
# every other step its output. A stage whose starting point was trained anew is trained anew, too.
RUN ?= runs/$(PROFILE)
SURVEY := $(RUN)/survey.h5
DATA ?= $(SURVEY)
STAGE_1 := $(RUN)/1_basemodel_synthetic
STAGE_2 := $(RUN)/2_realfinetune_firsthalf
STAGE_3 := $(RUN)/3_fefinetune_chunk
BASELINE := $(RUN)/basic_NN
ON_OBSERVED_1 := $(RUN)/evaluation/1_basemodel_synthetic_on_observed.csv
ON_OBSERVED_2 := $(RUN)/evaluation/2_realfinetune_firsthalf_on_observed.csv
CHUNK_3 := $(RUN)/evaluation/3_fefinetune_chunk_fehpredictions.csv
OF_CHUNK = $(RUN)/evaluation/$(1)_fehpredictions.csv
REPORT := $(RUN)/report.html
# The baseline needs no stage, and evaluations need not wait for the next one. Steps have one thread
# on a CPU; on a GPU, which the large profiles are for, they would stand in each other's way.
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
JOBS ?= $(if $(filter paper gpu,$(PROFILE))$(filter 1,$(CORES)),1,2)

CHECK = @test -f $@ || { echo "$(@D) was interrupted: run make again"; exit 1; }
ARGUMENTS = --profile $(PROFILE) --data $(DATA) --output $(@D) $(if $(SEED),--seed $(SEED))
# Shows the command, and keeps the seconds that it takes for the report.
STEP = $(patsubst %/complete,%,$(patsubst $(RUN)/%,%,$@))
TIMED = @mkdir -p $(RUN); begin=$$(date +%s); \
  trap '{ set +x; echo "$(STEP),$$(($$(date +%s) - begin))" >>$(RUN)/timings.csv; } 2>&-' EXIT; \
  set -x;

reproduce: $(INSTALLED)
	@test -n "$(STARS)" || { echo "unknown PROFILE=$(PROFILE): $(PROFILES)"; exit 1; }
	@test "$(DATA)" = "$(SURVEY)" || test -e "$(DATA)" || { echo "there is no DATA=$(DATA)"; exit 1; }
	@mkdir -p $(RUN); test -f $(RUN)/data.txt || echo "$(DATA)" >$(RUN)/data.txt
	@test "$$(cat $(RUN)/data.txt)" = "$(DATA)" || { echo "$(RUN) is of the survey" \
	  "$$(cat $(RUN)/data.txt), not of $(DATA): name another folder, make ... RUN=folder"; exit 1; }
	@if $(MAKE) --no-print-directory --question $(REPORT) 2>/dev/null; \
	then echo "nothing to do: $(RUN) is complete, its report is $(REPORT)"; \
	else $(MAKE) --no-print-directory --jobs=$(JOBS) $(REPORT) && echo "$(RUN) is complete: $(REPORT)"; fi

$(SURVEY):
	$(TIMED) $(BIN)/python dataset/create_mock_survey.py --stars $(word 1,$(STARS)) \
	  --test-stars $(word 2,$(STARS)) --seed 1 --output $@

$(STAGE_1)/complete: | $(DATA)
	$(TIMED) $(BIN)/python training/1_basemodel_synthetic/trainingAPOGEEGPU.py $(ARGUMENTS)
	$(CHECK)

$(STAGE_2)/complete: $(STAGE_1)/complete
	$(TIMED) $(BIN)/python training/2_realfinetune_firsthalf/finetuningAPOGEE.py $(ARGUMENTS) \
	  --checkpoint $(STAGE_1) --retrain-if-stale
	$(CHECK)

$(STAGE_3)/complete: $(STAGE_2)/complete
	$(TIMED) $(BIN)/python training/3_fefinetune_chunk/finetuningAPOGEE.py $(ARGUMENTS) \
	  --checkpoint $(STAGE_2) --retrain-if-stale
	$(CHECK)

$(BASELINE)/complete: | $(DATA)
	$(TIMED) $(BIN)/python training/basic_NN/TrainingNN.py $(ARGUMENTS)
	$(CHECK)

# The paper's choice of the epoch, which looks at labels of metal-poor stars and of test stars.
published: $(INSTALLED) $(STAGE_3)_published/complete $(BASELINE)_published/complete
	$(BIN)/python results/fe/EvaluateFeFT.py $(EVALUATE) $(BASELINE)_published $(STAGE_3)_published

$(STAGE_3)_published/complete: $(STAGE_2)/complete
	$(TIMED) $(BIN)/python training/3_fefinetune_chunk/finetuningAPOGEE.py $(ARGUMENTS) \
	  --checkpoint $(STAGE_2) --retrain-if-stale --set selection.name=published
	$(CHECK)

$(BASELINE)_published/complete: | $(DATA)
	$(TIMED) $(BIN)/python training/basic_NN/TrainingNN.py $(ARGUMENTS) --set selection.name=published
	$(CHECK)

FINETUNE := results/real_spectra_finetune
FIGURE_2 := --pretrained $(ON_OBSERVED_1) --finetuned $(ON_OBSERVED_2)
EVALUATE = --data $(DATA) --output $(RUN)/evaluation
# All stars from the whole first half of the band: in the arithmetic that they were trained in.
IN_FULL = $(EVALUATE) $(if $(filter gpu,$(PROFILE)),--precision bfloat16)
ATTENTION = --data $(DATA) --checkpoint $(STAGE_2) --output $(RUN)/attention

$(ON_OBSERVED_1): $(STAGE_1)/complete
	$(TIMED) $(BIN)/python $(FINETUNE)/evaluate_1_basemodel_synthetic_epoch325.py $(IN_FULL) \
	  --checkpoint $(STAGE_1)

$(ON_OBSERVED_2): $(STAGE_2)/complete
	$(TIMED) $(BIN)/python $(FINETUNE)/evaluate_2_realfinetune_firsthalf_epoch_10.py $(IN_FULL) \
	  --checkpoint $(STAGE_2)

$(CHUNK_3): $(STAGE_1)/complete $(STAGE_2)/complete $(STAGE_3)/complete $(BASELINE)/complete
	$(TIMED) $(BIN)/python results/fe/EvaluateFeFT.py $(EVALUATE) \
	  $(BASELINE) $(STAGE_1) $(STAGE_2) $(STAGE_3)

$(RUN)/tables/Table1.md: $(ON_OBSERVED_1) $(ON_OBSERVED_2)
	$(TIMED) $(BIN)/python $(FINETUNE)/Table1.py $(FIGURE_2) --output $(@D)

$(RUN)/figures/Figure2.png: $(ON_OBSERVED_1) $(ON_OBSERVED_2)
	$(TIMED) $(BIN)/python $(FINETUNE)/Figure2.py $(FIGURE_2) --output $@

$(RUN)/figures/Figure3.png: $(CHUNK_3)
	$(TIMED) $(BIN)/python results/fe/Figure3.py --scratch $(call OF_CHUNK,$(notdir $(BASELINE))) \
	  --pretrained $(call OF_CHUNK,$(notdir $(STAGE_1))) \
	  --finetuned $(call OF_CHUNK,$(notdir $(STAGE_2))) --hundred $(CHUNK_3) \
	  --training-labels $(DATA) --output $@

$(RUN)/attention/attention_shares.csv: $(STAGE_2)/complete
	$(TIMED) $(BIN)/python results/attention/extract_attention.py $(ATTENTION)

# (A pattern, since one call makes both.)
$(RUN)/%/Figure4.png $(RUN)/%/sensitivity.png: $(RUN)/%/attention_shares.csv
	$(TIMED) $(BIN)/python results/attention/Figure4.py $(ATTENTION)

$(RUN)/real_stars/predictions.csv: $(STAGE_2)/complete
	$(TIMED) $(BIN)/python results/real_stars/predict_real_stars.py --checkpoint $(STAGE_2) \
	  --output $(@D)

$(REPORT): $(RUN)/tables/Table1.md $(RUN)/figures/Figure2.png $(RUN)/figures/Figure3.png \
  $(RUN)/attention/Figure4.png $(RUN)/attention/sensitivity.png $(RUN)/real_stars/predictions.csv
	$(BIN)/python results/report.py $(RUN) --profile $(PROFILE) --data $(DATA)

publish-figures: $(INSTALLED)
	$(BIN)/python results/publish_figures.py $(RUN) --profile $(PROFILE) --data $(DATA)
	$(BIN)/python results/publish_checkpoint.py --checkpoint $(STAGE_2) \
	  --output results/checkpoints/$(PROFILE)

clean:
	rm -rf .venv build
