"""Stars with known labels: where they come from, and where they are kept."""
