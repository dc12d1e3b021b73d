"""Foundation models for stellar spectra."""
