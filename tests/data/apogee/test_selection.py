"""The cuts of the paper, one spectrum a star, and the published split."""

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from stellarperceptron.data.apogee.dr17 import STAR_BAD, Catalogue, aspcap_path
from stellarperceptron.data.apogee.selection import (
    ALL_ZERO,
    MISSING,
    NO_LABEL,
    catalogue_cuts,
    highest_snr,
    published_split,
    select,
)


def make_catalogue(n=12, **columns):
    values = {
        "row": np.arange(n),
        "apogee_id": np.array([f"2M{i:08d}".encode() for i in range(n)]),
        "telescope": np.full(n, b"apo25m"),
        "field": np.full(n, b"000+02"),
        "aspcapflag": np.zeros(n, np.int64),
        "starflag": np.zeros(n, np.int64),
        "snr": np.full(n, 300.0),
        "vscatter": np.full(n, 0.1),
        "labels": np.ones((n, 5), np.float32),
        "label_errors": np.ones((n, 5), np.float32),
    }
    return Catalogue(**{**values, **columns})


# --- split ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_stars", [2, 3, 7, 1000, 128_485])
def test_split_is_that_of_scikit_learn(n_stars):
    train, test = train_test_split(np.arange(n_stars), test_size=0.2, random_state=42)
    ours = published_split(n_stars)
    np.testing.assert_array_equal(ours[0], train)
    np.testing.assert_array_equal(ours[1], test)


def test_one_star_cannot_be_split():
    with pytest.raises(ValueError, match="two or more"):
        published_split(1)


@pytest.mark.reference
def test_published_stars_have_the_order_of_the_split(shared):
    """The catalogue follows the sky, so that stars nearby in it are alike; in the published order
    they are not. Put back by the split of 128,485 rows, they are alike again, but not when the
    split is off by one row. Only the first stars are used: where those without a label (57, at
    unknown places) were dropped, the order shifts."""
    logg = np.load(shared / "published" / "labels_train.npy", allow_pickle=False)[:2500, 1]
    order = published_split(128_485)[0]

    def likeness(shift):
        """Correlation of neighbours, in units of its standard deviation for stars at random."""
        series = logg[np.argsort(order[shift : shift + len(logg)])]
        series = series - series.mean()
        return (series[1:] * series[:-1]).mean() / series.var() * len(series) ** 0.5

    assert likeness(0) > 6
    assert max(abs(likeness(shift)) for shift in (1, 2, 3)) < 3


# --- cuts -----------------------------------------------------------------------------------------


def test_limits_themselves_and_nan_are_cut():
    snr = np.array([200.0, 200.01, np.nan, 300, 300, 300])
    vscatter = np.array([0.1, 0.1, 0.1, 1.0, 0.99, np.nan])
    left, cuts = catalogue_cuts(make_catalogue(6, snr=snr, vscatter=vscatter))
    assert left.row.tolist() == [1, 4]
    assert [(cut.removed, cut.left) for cut in cuts] == [(0, 6), (0, 6), (2, 4), (2, 2)]


def test_only_bit_23_of_aspcapflag_counts_and_every_bit_of_starflag():
    aspcapflag = np.array([STAR_BAD, STAR_BAD | 1, 1 << 22, 1 << 24, 0, 0])
    starflag = np.array([0, 0, 0, 0, 1 << 40, 1])
    left, cuts = catalogue_cuts(make_catalogue(6, aspcapflag=aspcapflag, starflag=starflag))
    assert left.row.tolist() == [2, 3]
    assert [cut.removed for cut in cuts] == [2, 2, 0, 0]


def test_highest_snr_of_each_star_and_the_first_of_equals():
    names = np.array([b"b", b"a", b"b", b"a", b"c", b"b"])
    snr = np.array([300.0, 250, 400, 250, 201, 399])
    assert np.flatnonzero(highest_snr(names, snr)).tolist() == [1, 2, 4]


# --- selection with spectra -----------------------------------------------------------------------


def test_missing_file_changes_no_other_stars_side():
    stars = make_catalogue(40)
    whole = select(stars, [""] * 40)
    gone = int(whole.train[5])
    reasons = [MISSING if i == gone else "" for i in range(40)]
    partial = select(stars, reasons)
    np.testing.assert_array_equal(partial.train, np.delete(whole.train, 5))
    np.testing.assert_array_equal(partial.test, whole.test)
    assert partial.reasons == {gone: MISSING}


def test_zero_spectrum_is_cut_before_the_split():
    stars = make_catalogue(40)
    chosen = select(stars, [ALL_ZERO if i == 3 else "" for i in range(40)])
    train, test = published_split(39)
    rest = np.delete(np.arange(40), 3)
    np.testing.assert_array_equal(chosen.train, rest[train])
    np.testing.assert_array_equal(chosen.test, rest[test])
    assert [(cut.removed, cut.left) for cut in chosen.cuts] == [(1, 39), (0, 39)]


def test_file_that_the_archive_lacks_is_cut_like_a_zero_spectrum():
    stars = make_catalogue(40)
    path = aspcap_path(b"apo25m", b"000+02", stars.apogee_id[3])
    reasons = [MISSING if i == 3 else "" for i in range(40)]
    assert select(stars, reasons, frozenset([path])).selected == 39
    assert select(stars, reasons).selected == 40


def test_weaker_spectrum_takes_the_place_of_a_zero_one_but_not_of_a_missing_one():
    stars = make_catalogue(10, snr=np.r_[500.0, np.full(9, 300)])
    stars.apogee_id[1] = stars.apogee_id[0]
    zero = select(stars, [ALL_ZERO, *[""] * 9])
    assert {0, 1} & {*zero.train, *zero.test} == {1}
    missing = select(stars, [MISSING, *[""] * 9])
    assert not {0, 1} & {*missing.train, *missing.test}


def test_star_without_any_label_is_left_out_after_the_split():
    labels = np.ones((40, 5), np.float32)
    labels[7] = np.nan
    labels[8, 1:] = np.nan
    chosen = select(make_catalogue(40, labels=labels), [""] * 40)
    assert chosen.selected == 40
    kept = {*chosen.train.tolist(), *chosen.test.tolist()}
    assert kept == set(range(40)) - {7}
    assert chosen.reasons == {7: NO_LABEL}


def test_too_few_stars_are_refused():
    with pytest.raises(ValueError, match="neither may be none"):
        select(make_catalogue(2), [MISSING, ""])
    with pytest.raises(ValueError, match="0 stars are left"):
        select(make_catalogue(2), [ALL_ZERO] * 2)
