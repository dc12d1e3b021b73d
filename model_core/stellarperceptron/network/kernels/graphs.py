"""Gradients in one launch: a CUDA graph of everything from the batch to the clipped gradients.

A step of the network launches some 200 kernels, which takes the host longer than the GPU needs to
run them. A CUDA graph records the launches once and replays them in one launch. Each time it reads
its batch from the same memory and writes its results to the same memory.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CapturedGradients", "cuda_graph", "tensors_of"]

WARM_UP = 3  # calls before a graph is recorded: libraries and compilers prepare themselves


def tensors_of(item: Any) -> Iterator[Tensor]:
    """Tensors of a batch: a tensor, or a tuple or dataclass of such things and others."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, tuple):
        for part in item:
            yield from tensors_of(part)
    elif dataclasses.is_dataclass(item):
        for field in dataclasses.fields(item):
            yield from tensors_of(getattr(item, field.name))


def _copy_of(item: Any) -> Any:
    """A batch like another one, in memory of its own; see `tensors_of`."""
    if isinstance(item, Tensor):
        return item.clone()
    if isinstance(item, tuple):
        parts = map(_copy_of, item)
        return type(item)(*parts) if hasattr(item, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        names = [field.name for field in dataclasses.fields(item)]
        return dataclasses.replace(item, **{name: _copy_of(getattr(item, name)) for name in names})
    return item


def _kind_of(item: Any) -> Any:
    """Everything about a batch that a graph cannot change: shapes, types, and what is no tensor."""
    if isinstance(item, Tensor):
        return item.shape, item.dtype
    if isinstance(item, tuple):
        return tuple(map(_kind_of, item))
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return tuple(_kind_of(getattr(item, field.name)) for field in dataclasses.fields(item))
    return item


def cuda_graph(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Record a function as a CUDA graph; its result, and a function that computes it again."""
    graph = torch.cuda.CUDAGraph()
    # Meanwhile another thread may prepare batches: only this one must not wait for the device.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()
    return result, graph.replay


@dataclasses.dataclass
class _Graph:
    """Graph of the batches of one kind; before it is recorded, only the number of calls is kept."""

    calls: int = 0
    batch: Any = None
    values: Any = None
    gradients: list[Tensor | None] = dataclasses.field(default_factory=list)
    replay: Callable[[], None] | None = None


class CapturedGradients:
    """A function of a batch that sets gradients, recorded once for each kind of batch.

    Batches are of one kind if their tensors have the same shapes and types and all else is equal.

    Parameters
    ----------
    function
        Function of a batch (see `tensors_of`) that computes the gradients of `parameters` anew and
        returns tensors. It must not wait for the device.
    parameters
        Parameters whose gradients it sets.
    record
        See `cuda_graph`.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        parameters: Iterable[nn.Parameter],
        record: Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]] = cuda_graph,
    ):
        self.function, self.parameters, self.record = function, list(parameters), record
        self.graphs: dict[tuple, _Graph] = {}
        self.possible = True

    def __call__(self, batch: Any) -> Any:
        """Call the function; what it returns is overwritten by the next call."""
        graph = self.graphs.setdefault(_kind_of(batch), _Graph())
        if graph.replay is None:
            graph.calls += 1
            if not self.possible or graph.calls <= WARM_UP or not self._recorded(graph, batch):
                return self._launched(batch)
        for own, given in zip(tensors_of(graph.batch), tensors_of(batch), strict=True):
            own.copy_(given)
        graph.replay()
        # Another graph, or a call without one, may have set others.
        for parameter, gradient in zip(self.parameters, graph.gradients, strict=True):
            parameter.grad = gradient
        return graph.values

    def _launched(self, batch: Any) -> Any:
        """Call the function as usual, on another stream than the default one, as graphs need it."""
        device = next(tensors_of(batch)).device
        if device.type != "cuda":
            return self.function(batch)
        now, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        side.wait_stream(now)
        with torch.cuda.stream(side):
            values = self.function(batch)
        now.wait_stream(side)
        return values

    def _recorded(self, graph: _Graph, batch: Any) -> bool:
        """Record a graph; False, with a warning, if that fails."""
        graph.batch = _copy_of(batch)
        try:
            graph.values, graph.replay = self.record(lambda: self.function(graph.batch))
        except RuntimeError as error:
            self.possible, graph.batch = False, None
            with contextlib.suppress(RuntimeError):  # gradients of what was not recorded
                for parameter in self.parameters:
                    parameter.grad = None
            warnings.warn(f"no CUDA graph, every kernel is launched: {error}", stacklevel=2)
            return False
        graph.gradients = [parameter.grad for parameter in self.parameters]
        return True
