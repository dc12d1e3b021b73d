"""Spectra and labels: surveys, real and mock, and their files."""
