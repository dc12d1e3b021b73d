"""The catalogue of data release 17, and where its files lie."""

import gzip

import numpy as np
import pytest
from astropy.io import fits
from dr17_files import LABELS, write_archive

from stellarperceptron.data.apogee.dr17 import CATALOGUE, STAR_BAD, aspcap_path, read_catalogue


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("sas")
    made = write_archive(root, 60, seed=1)
    made.catalogue = root / CATALOGUE
    return made


def test_columns_are_those_of_the_file(archive):
    catalogue = read_catalogue(archive.catalogue)
    rows = archive.rows
    assert catalogue.row.tolist() == list(range(60))
    for name in ("apogee_id", "telescope", "field"):
        assert getattr(catalogue, name).astype(str).tolist() == rows[name.upper()].tolist()
    np.testing.assert_array_equal(catalogue.aspcapflag, rows["ASPCAPFLAG"])
    np.testing.assert_array_equal(catalogue.starflag, rows["STARFLAG"])
    np.testing.assert_array_equal(catalogue.snr, rows["SNR"].astype(np.float32))
    for i, name in enumerate(LABELS):
        labels = np.where(rows[name] > -999, rows[name], np.nan)
        np.testing.assert_array_equal(catalogue.labels[:, i], labels)
        errors = np.where(rows[f"{name}_ERR"] > -999, rows[f"{name}_ERR"], np.nan)
        np.testing.assert_array_equal(catalogue.label_errors[:, i], errors)


def test_pieces_do_not_matter(archive):
    whole = read_catalogue(archive.catalogue)
    pieces = read_catalogue(archive.catalogue, rows_at_once=7)
    for name, array in vars(whole).items():
        np.testing.assert_array_equal(getattr(pieces, name), array)


def test_unsigned_flags_are_read(archive, tmp_path):
    """Columns of unsigned integers are stored with an offset."""
    with fits.open(archive.catalogue) as hdus:
        columns = [
            fits.Column(c.name, "K", array=hdus[1].data[c.name].astype(np.uint64), bzero=2**63)
            if c.name in ("STARFLAG", "ASPCAPFLAG")
            else fits.Column(c.name, c.format, array=hdus[1].data[c.name])
            for c in hdus[1].columns
        ]
        table = fits.BinTableHDU.from_columns(columns)
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "unsigned.fits")
    catalogue = read_catalogue(tmp_path / "unsigned.fits")
    np.testing.assert_array_equal(catalogue.aspcapflag, archive.rows["ASPCAPFLAG"])
    np.testing.assert_array_equal(catalogue.starflag, archive.rows["STARFLAG"])
    assert (catalogue.aspcapflag & STAR_BAD).any()


@pytest.fixture(scope="module")
def packed(archive, tmp_path_factory):
    """The catalogue, gzipped."""
    path = tmp_path_factory.mktemp("packed") / "allStar.fits.gz"
    path.write_bytes(gzip.compress(archive.catalogue.read_bytes()))
    return path


@pytest.mark.parametrize("rows", [7, 20_000])
def test_gzipped_catalogue_is_read(archive, packed, rows):
    plain, other = read_catalogue(archive.catalogue), read_catalogue(packed, rows_at_once=rows)
    for name, array in vars(plain).items():
        np.testing.assert_array_equal(getattr(other, name), array)


@pytest.mark.filterwarnings("ignore")
def test_damaged_gzipped_catalogue_is_named(packed, tmp_path):
    data = packed.read_bytes()
    path = tmp_path / "damaged.fits.gz"
    for place in np.random.default_rng(0).integers(20, len(data) - 8, 20):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ValueError, match=r"damaged\.fits\.gz"):
            read_catalogue(path)
    for share in (0.3, 0.9, 0.999):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ValueError, match=r"damaged\.fits\.gz"):
            read_catalogue(path)


def test_marks_for_no_value_are_missing(archive, tmp_path):
    with fits.open(archive.catalogue) as hdus:
        table = hdus[1].data
        table["VSCATTER"][:3], table["SNR"][:2] = [-9999, 9999, 999999], [-9999, 9999]
        table["FE_H"][:3], table["FE_H_ERR"][:2] = [-9999, 9999, -999.99], [-9999, 9999]
        hdus.writeto(tmp_path / "allStar.fits")
    catalogue = read_catalogue(tmp_path / "allStar.fits")
    assert np.isnan(catalogue.vscatter[:3]).all()
    assert np.isnan(catalogue.snr[:2]).all()
    assert np.isnan(catalogue.labels[:3, -1]).all()
    assert np.isnan(catalogue.label_errors[:2, -1]).all()
    assert np.isfinite(catalogue.labels[3:, -1]).any()


def test_unreadable_catalogue_is_not_to_be_removed(archive, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match="chmod"):
        read_catalogue(archive.catalogue)


def test_path_is_that_of_the_archive():
    assert aspcap_path(b"lco25m", b"000+02", b"2M00000002+7417074") == (
        "dr17/apogee/spectro/aspcap/dr17/synspec_rev1/lco25m/000+02/"
        "aspcapStar-dr17-2M00000002+7417074.fits"
    )


@pytest.mark.parametrize("name", [b"", b"..", b"a/b", b"a b", b"\xff", b"a\n", b"."])
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match="is no name"):
        aspcap_path(b"apo25m", name, b"2M00000000+0000000")
