"""The mock survey: stars, synthetic spectra, the spectrograph and the reduction."""
