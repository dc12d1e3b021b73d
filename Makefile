# make test                     run all tests, on two cores where there are two
# make test-fast                run the quick tests, in about 90 seconds on two cores
# make lint                     check lint, format and types
# make docs                     build the documentation site in build/site and check its links;
#                               EXTERNAL=1 also those to other sites
# make notebooks                execute all notebooks and store them with their outputs; takes minutes,
#                               and compare_to_AstroNN needs runs/laptop
# make reproduce PROFILE=smoke  make survey, models, evaluation, figures, attention, real stars and
#                               report in runs/smoke; continues an interrupted run
#                               profiles: smoke, laptop, laptop_pixel, instruments, paper, gpu
#                DATA=survey.h5 use another survey than the mock one (needs its own RUN=folder)
#                SEED=1         use other initial weights and random choices (needs its own RUN=folder)
#                JOBS=1         run one step at a time; smoke and laptop run two if there are two cores
# make baselines                train all baselines, also the convolutional network, which `reproduce`
#                               leaves out since it is slow, and write the report again
# make published                train stage 3 and baseline again, with the paper's choice of the epoch,
#                               which uses labels of other stars; evaluate them beside `reproduce`'s
# make gpu-check                all that is to be measured and trained on a GPU, in ten minutes; see
#                               benchmarks/gpu_check.sh
# make publish-figures          copy the figures of a run to the scripts that draw them, and its
#                               stage 2, in half precision and with a model card, to the package's
#                               checkpoints
# Each installs what it needs into .venv, once. All it needs is Python 3.11 or newer.
# TORCH_INDEX=https://...       take PyTorch from this package index

PROFILE ?= laptop
# The first Python that is new enough. It has to run, which a version manager's stub may not do.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed

# Sizes of the mock survey by profile: training and test stars.
STARS_smoke := 600 200
STARS_laptop := 20000 5000
STARS_laptop_pixel := $(STARS_laptop)
STARS_instruments := $(STARS_laptop)
STARS_paper := 102747 25681
STARS_gpu := $(STARS_paper)
STARS := $(STARS_$(PROFILE))
# Of these the baselines learn from so many; all where nothing is said.
BASELINE_STARS_smoke := 100
PROFILES := smoke, laptop, laptop_pixel, instruments, paper or gpu

.PHONY: install test test-fast lint docs notebooks reproduce baselines gpu-check publish-figures \
  clean published

install: $(INSTALLED)

# On Linux the ordinary package index has PyTorch with CUDA: gigabytes that a machine without an NVIDIA
# GPU does not need. There the CPU build is tried first, unless pip is configured to look elsewhere.
PYTORCH_CPU := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/pip --quiet --disable-pip-version-check
TORCH := $(PIP) install --no-deps -c constraints.txt torch --index-url

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer: name one, make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	@if test -n "$(TORCH_INDEX)"; then set -x; $(TORCH) $(TORCH_INDEX); \
	elif test "$$(uname -s)" = Linux && ! command -v nvidia-smi >/dev/null && \
	  ! $(PIP) config list | grep -Eq 'index|find-links'; then \
	  echo "PyTorch: the CPU build from $(PYTORCH_CPU)"; \
	  $(TORCH) $(PYTORCH_CPU) --retries 0 --timeout 10 2>/dev/null || \
	  echo "which cannot be had: the build of the ordinary index"; fi
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# Each test file stays in one process, so that its fixtures are made once.
# OMP_NUM_THREADS, which limits the threads of a process, would limit what nproc counts.
CORES := $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest $(if $(filter 1,$(CORES)),,-n 2 --dist loadfile --no-loadscope-reorder)

test: $(INSTALLED)
	$(PYTEST)

test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow" --hypothesis-profile=quick

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The site is laid out like the repository, so that links between its pages hold in both.
PAGES := '*.md' '*.ipynb' '*.png' '*.cff' environment.yml
EXTRAS := docs notebooks
$(EXTRAS:%=.venv/%): .venv/%: $(INSTALLED)
	$(PIP) install -c constraints.txt -e '.[$*]'
	@touch $@

docs: .venv/docs
	rm -rf build/pages && mkdir -p build/pages
	git ls-files -coz --exclude-standard $(PAGES) | tar --null -T - -cf - | tar -xf - -C build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@# Links of notebooks to pages are left as they are by mkdocs-jupyter.
	find build/site -name '*.html' -exec perl -pi -e \
	  's/(href="[^":]*)README\.md/$$1index.html/g; s/(href="[^":]*)\.md/$$1.html/g' {} +
	$(BIN)/linkchecker --no-status $(if $(EXTERNAL),--check-extern) build/site/index.html

NOTEBOOKS := results/quickstart.ipynb results/real_spectra_finetune/compare_to_AstroNN.ipynb \
  $(wildcard docs/tutorials/*.ipynb)
notebooks: .venv/notebooks
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.record_timing=False $(NOTEBOOKS)

# Complete steps are not run again. A stage is complete once its folder has a file `complete`, any
# other step once its output exists. A stage whose starting point was retrained is retrained, too.
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
QUICK_BASELINES := $(RUN)/baselines/quadratic_regression.csv $(RUN)/baselines/pixel_network.csv
OF_CHUNK = $(RUN)/evaluation/$(1)_fehpredictions.csv
REPORT := $(RUN)/report.html
# Two steps run at a time: the baselines do not depend on the stages, nor a stage on the evaluation of
# the one before. Each has one thread on a CPU. On a GPU, where the large profiles belong, two steps
# would slow each other down.
JOBS ?= $(if $(filter paper gpu,$(PROFILE))$(filter 1,$(CORES)),1,2)

CHECK = @test -f $@ || { echo "$(@D) was interrupted: run make again"; exit 1; }
ARGUMENTS = --profile $(PROFILE) --data $(DATA) --output $(@D) $(if $(SEED),--seed $(SEED))
# Shows the command, and records how long it takes, for the report.
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

# Regression and networks that learn from the same stars, to be set beside stage 2.
$(RUN)/baselines/%.csv: | $(DATA)
	$(TIMED) $(BIN)/python results/baselines/train_baselines.py --data $(DATA) --output $(@D) \
	  --baselines $* $(if $(SEED),--seed $(SEED)) $(addprefix --stars ,$(BASELINE_STARS_$(PROFILE)))

baselines: $(INSTALLED) $(QUICK_BASELINES) $(RUN)/baselines/convolutional_network.csv
	$(BIN)/python results/report.py $(RUN) --profile $(PROFILE) --data $(DATA)

# The paper's choice of the epoch, which uses labels of metal-poor stars and of test stars.
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
# These predictions use the precision of the training.
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

$(RUN)/figures/coverage.png: $(ON_OBSERVED_2) $(CHUNK_3)
	$(TIMED) $(BIN)/python $(FINETUNE)/coverage.py --finetuned $(ON_OBSERVED_2) \
	  --hundred $(CHUNK_3) --output $@

$(RUN)/figures/errors_by_range.png: $(STAGE_2)/complete
	$(TIMED) $(BIN)/python $(FINETUNE)/errors_by_range.py --data $(DATA) --checkpoint $(STAGE_2) \
	  --output $(@D)

$(RUN)/figures/Figure3.png: $(CHUNK_3)
	$(TIMED) $(BIN)/python results/fe/Figure3.py --scratch $(call OF_CHUNK,$(notdir $(BASELINE))) \
	  --pretrained $(call OF_CHUNK,$(notdir $(STAGE_1))) \
	  --finetuned $(call OF_CHUNK,$(notdir $(STAGE_2))) --hundred $(CHUNK_3) \
	  --training-labels $(DATA) --output $@

$(RUN)/attention/attention_shares.csv: $(STAGE_2)/complete
	$(TIMED) $(BIN)/python results/attention/extract_attention.py $(ATTENTION)

# A pattern rule, since one command makes both files.
$(RUN)/%/Figure4.png $(RUN)/%/sensitivity.png: $(RUN)/%/attention_shares.csv
	$(TIMED) $(BIN)/python results/attention/Figure4.py $(ATTENTION)

$(RUN)/real_stars/predictions.csv: $(STAGE_2)/complete
	$(TIMED) $(BIN)/python results/real_stars/predict_real_stars.py --checkpoint $(STAGE_2) \
	  --output $(@D)

$(REPORT): $(RUN)/tables/Table1.md $(RUN)/figures/Figure2.png $(RUN)/figures/Figure3.png \
  $(RUN)/figures/coverage.png $(RUN)/figures/errors_by_range.png $(RUN)/attention/Figure4.png $(RUN)/attention/sensitivity.png \
  $(RUN)/real_stars/predictions.csv $(QUICK_BASELINES)
	$(BIN)/python results/report.py $(RUN) --profile $(PROFILE) --data $(DATA)

publish-figures: $(INSTALLED)
	$(BIN)/python results/publish_checkpoint.py --checkpoint $(STAGE_2) --data $(DATA) \
	  --predictions $(ON_OBSERVED_2) --output model_core/stellarperceptron/checkpoints/$(PROFILE)
	$(BIN)/python results/publish_figures.py $(RUN) --profile $(PROFILE) --data $(DATA)

gpu-check: $(INSTALLED)
	bash benchmarks/gpu_check.sh

clean:
	rm -rf .venv build
