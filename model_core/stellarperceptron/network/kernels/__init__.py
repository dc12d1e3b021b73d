"""Kernels that are faster than PyTorch's own on a CPU or a GPU."""
