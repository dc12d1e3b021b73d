# make test                     run the tests
# make lint                     check lint and format
# make reproduce PROFILE=smoke  the whole chain; profiles: smoke, laptop, paper, gpu
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
STARS_paper := 102747 25681
STARS_gpu := $(STARS_paper)
STARS := $(STARS_$(PROFILE))
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

reproduce: $(INSTALLED)
	@test -n "$(STARS)" || { echo "unknown PROFILE=$(PROFILE): smoke, laptop, paper or gpu"; exit 1; }
	@$(MAKE) --no-print-directory $(SURVEY)

$(SURVEY):
	$(BIN)/python dataset/create_mock_survey.py --stars $(word 1,$(STARS)) \
	  --test-stars $(word 2,$(STARS)) --seed 1 --output $@

clean:
	rm -rf .venv build
