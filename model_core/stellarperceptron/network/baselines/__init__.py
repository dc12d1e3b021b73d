"""Models without attention: the published baseline, and quadratic regression."""
