"""Measured speed, beside the published manner and the hardware's floor."""
