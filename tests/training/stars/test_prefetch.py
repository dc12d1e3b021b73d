"""Where spectra are kept, and that it makes no difference to the batches."""

import threading

import numpy as np
import pytest
import torch
from small_training import make_data

from stellarperceptron.training import batches as batches_module
from stellarperceptron.training.batches import TrainingGenerator
from stellarperceptron.training.stars import prefetch
from stellarperceptron.training.stars.prefetch import memory_for


@pytest.mark.parametrize(
    ("size", "memory", "home"),
    [
        (499, "auto", "cuda"),
        (501, "auto", "cpu"),
        (501, "device", "cuda"),
        (1, "host", "cpu"),
    ],
)
def test_spectra_lie_on_the_gpu_if_they_leave_room_there(monkeypatch, size, memory, home):
    monkeypatch.setattr(prefetch, "_free_memory", lambda device: 1000)
    assert memory_for(size, "cuda", memory).type == home


def test_a_cpu_is_its_own_host():
    assert {memory_for(10**15, "cpu", memory).type for memory in ("auto", "device", "host")} == {
        "cpu"
    }
    with pytest.raises(ValueError, match="memory = 'disk' is not one of auto, device, host"):
        memory_for(1, "cpu", "disk")


def batches(data, **options):
    generator = TrainingGenerator(data, np.arange(30), 4, 12, seed=3, **options)
    return list(generator.batches(epoch=1, start=2))


@pytest.mark.parametrize("ahead", [1, 3, 20])
@pytest.mark.parametrize("augment", [None, lambda flux, generator: flux * 1.01])
def test_streamed_batches_equal_resident_ones(monkeypatch, ahead, augment):
    data = make_data(augment=augment)
    resident = batches(data)
    monkeypatch.setattr(
        batches_module,
        "batches_of_values",
        lambda values, parts, device: prefetch._streamed(values, parts, device, ahead),
    )
    streamed = batches(data)
    assert len(streamed) == len(resident) == 6
    for one, other in zip(resident, streamed, strict=True):
        for name in ("stars", "labels"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), equal_nan=True)
        assert torch.equal(one.tokens.ids, other.tokens.ids)
        values = one.tokens.values, other.tokens.values
        torch.testing.assert_close(*values, rtol=0, atol=0, equal_nan=True)


def test_no_more_is_fetched_ahead_than_asked_for():
    asked = []

    def rows():
        for number in range(10):
            asked.append(number)
            yield torch.tensor([number])

    values = torch.arange(10.0)[:, None]
    stream = prefetch._streamed(values, rows(), torch.device("cpu"), ahead=2)
    assert next(stream)[1].item() == 0.0 and asked == [0, 1, 2]
    stream.close()


def test_random_changes_do_not_depend_on_the_number_of_processes():
    def augment(flux, generator):
        return flux + 0.01 * torch.randn(flux.shape, generator=generator)

    data = make_data(augment=augment, bad=0.0)
    alone = TrainingGenerator(data, np.arange(28), 8, 12)
    two = [TrainingGenerator(data, np.arange(28), 4, 12, rank=i, world_size=2) for i in (0, 1)]
    for whole, *parts in zip(alone.batches(), *(g.batches() for g in two), strict=True):
        together = torch.cat([part.tokens.values for part in parts])
        torch.testing.assert_close(whole.tokens.values, together, rtol=0, atol=0)


def test_items_are_made_ahead_in_another_thread():
    made = []

    def items():
        for i in range(6):
            made.append((i, threading.get_ident()))
            yield i

    coming = prefetch.made_ahead(items(), ahead=3)
    assert next(coming) == 0
    assert [next(coming) for _ in range(2)] == [1, 2]
    coming.close()  # waits for what is under way
    assert [i for i, _ in made] == [0, 1, 2, 3, 4, 5]
    assert threading.get_ident() not in {thread for _, thread in made}
    assert list(prefetch.made_ahead(items())) == [0, 1, 2, 3, 4, 5]


def test_what_fails_ahead_fails_when_it_is_asked_for():
    def items():
        yield 1
        raise OSError("the disk is gone")

    coming = prefetch.made_ahead(items())
    assert next(coming) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(coming)
