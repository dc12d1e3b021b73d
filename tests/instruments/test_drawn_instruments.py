"""Instruments that are made up."""

import dataclasses
import json

import numpy as np
import pytest

from stellarperceptron.instruments import LOW_RESOLUTION, MOONS_H
from stellarperceptron.instruments.drawn import DrawnInstruments

DRAWN = DrawnInstruments(share=0.5)


def draw(seed):
    return DRAWN.draw(np.random.default_rng(seed), [(15_152.0, 16_960.0)])


def test_drawn_instruments_are_what_the_parameters_say():
    drawn = [draw(seed) for seed in range(60)]
    for one in drawn:
        assert one.resolving_power in DRAWN.powers
        assert one.wavelength[0] >= 15_152 and one.wavelength[-1] <= 16_960
        sampling = 1 / (one.resolving_power * one.log_step * np.log(10))
        assert 2 <= sampling <= 3.5
        assert len(one) >= (1 - 3 * 0.08) * one.grid_index[-1]
        DRAWN.refuse(one.wavelength, np.full(len(one), one.resolving_power))
    assert {len(one.chips) for one in drawn} == {1, 2, 3, 4}
    assert len({one.resolving_power for one in drawn}) > 15


def test_windows_are_chips_that_gaps_divide():
    drawn = DrawnInstruments(share=1, resolving_power=(1_500, 60_000))
    windows = [(4714.0, 4904.0), (5650.0, 5874.0), (6480.0, 6738.0), (7702.0, 7889.0)]
    for seed in range(40):
        one = drawn.draw(np.random.default_rng(seed), windows)
        assert min(chip.stop - chip.start for chip in one.chips.values()) >= 20
        for chip in one.chips.values():
            ends = one.wavelength[[chip.start, chip.stop - 1]]
            assert any(low <= ends[0] and ends[1] <= high for low, high in windows)
            assert np.ptp(np.diff(one.grid_index[chip])) == 0


def test_arms_are_those_of_the_models_instrument():
    drawn = DrawnInstruments(share=1, resolving_power=(1_500, 6_000), gaps=0, arms=True)
    ends = [LOW_RESOLUTION.wavelength[c][[0, -1]] for c in LOW_RESOLUTION.chips.values()]
    jumps = np.flatnonzero(np.diff(LOW_RESOLUTION.grid_index) > 1)
    gaps = LOW_RESOLUTION.wavelength[np.stack([jumps, jumps + 1])]
    for seed in range(20):
        one = drawn.draw(np.random.default_rng(seed), [(3000.0, 9000.0)], LOW_RESOLUTION)
        assert one.continuum == LOW_RESOLUTION.continuum
        for chip, (low, high) in zip(one.chips.values(), ends, strict=True):
            first, last = one.wavelength[chip][[0, -1]]
            assert low <= first < low + 5 and high - 5 < last <= high
        x = one.wavelength[:, None]
        assert not ((x > gaps[0]) & (x < gaps[1])).any()
        assert (np.diff(one.grid_index) > 1).sum() >= len(jumps) - 1


def test_the_same_seed_draws_the_same_instrument():
    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_instruments_unlike_all_drawn_ones_are_refused():
    wavelength, power = MOONS_H.wavelength, np.ones(len(MOONS_H))
    DRAWN.refuse(wavelength, 19_700 * power)
    with pytest.raises(ValueError, match=r"power of 1000 .* 4000 to 50000.*a model that covers"):
        DRAWN.refuse(wavelength, 1_000 * power)
    with pytest.raises(ValueError, match="smooth the spectra"):
        DRAWN.refuse(wavelength, 90_000 * power)
    with pytest.raises(ValueError, match=r"6\.0 pixels a resolution element.*average"):
        DRAWN.refuse(wavelength, 9_000 * power)


def test_they_are_kept_as_json():
    text = json.dumps(dataclasses.asdict(DRAWN))
    assert DrawnInstruments.from_dict(json.loads(text)) == DRAWN
    with pytest.raises(ValueError, match="no drawn instruments"):
        DrawnInstruments.from_dict({"shape": 3})


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": 2},
        {"resolving_power": (5e4, 4e3)},
        {"sampling": (0, 2)},
        {"gaps": 9},
        {"combined_share": 0.3, "arms": True},
    ],
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DrawnInstruments(**wrong)
