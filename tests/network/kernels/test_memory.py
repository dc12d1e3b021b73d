"""Memory that is kept is not asked for again."""

import platform
import resource
from pathlib import Path

import pytest
import torch

from stellarperceptron.network.kernels.memory import freed_memory_kept

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told to keep memory"
)

PAGES = 12_000  # of 4096 bytes: more than glibc ever keeps by itself


def page_faults() -> int:
    """Pages that the system has to provide for ten tensors that come, are filled and go."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(PAGES * 1024).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_pages() -> int:
    """Pages of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1])


def test_pages_are_asked_for_once():
    with freed_memory_kept():
        page_faults()  # until the heap has found its size
        assert page_faults() < PAGES / 10


def test_memory_is_given_back_afterwards():
    with freed_memory_kept():
        page_faults()
        kept = resident_pages()
    assert resident_pages() < kept - PAGES / 2
