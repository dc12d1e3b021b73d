"""Spectra of other surveys, one by one: GALAH, Gaia RVS, LAMOST, SDSS-V and DESI."""
