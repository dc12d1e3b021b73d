"""The APOGEE survey: its pixels, files, catalogue and archive."""
