"""Training: profiles, batches, steps, epochs, stages."""
