"""Steps of training and validation, for any network, in one process or many."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from stellarperceptron.network.config import PRECISIONS
from stellarperceptron.network.kernels.graphs import CapturedGradients
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.utils.distributed import Process, precise

__all__ = ["Batches", "Task", "Trainer"]


class Batches(Protocol):
    """Batches of this process; asking for the same epoch again gives the same batches.

    A batch has an attribute `stars`, the rows of its stars. Only their number matters here.
    """

    rows: Any

    def __len__(self) -> int:
        """Batches of an epoch."""

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """Batches of an epoch, from batch `start` on."""


class Task(Protocol):
    """The interface between the training loop and a network with its stars.

    Attributes
    ----------
    network : nn.Module
        Network to train in place, apart from frozen parts.
    training, validation : Batches
    optimizer : type
        AdamW or Adam.
    flops_per_star : float
        Operations per star of a training step [FLOP].
    shapes_vary : bool
        Whether the number of tokens differs between batches.
    """

    network: nn.Module
    training: Batches
    validation: Batches
    optimizer: type[torch.optim.Optimizer]
    flops_per_star: float
    shapes_vary: bool

    def losses(self, module: nn.Module, batch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Terms of the loss by name, averaged over the stars of a batch, and further metrics.

        The loss is the sum of its terms; metrics are only logged. `module` is the network, possibly
        compiled or wrapped for many processes.
        """

    def save(
        self,
        folder: Path,
        network: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        epoch: int,
        training_state: dict[str, Any] | None,
    ) -> None:
        """Save a checkpoint, replacing an earlier one; a failed save leaves nothing behind."""

    def load(self, folder: Path) -> dict[str, Any]:
        """Load the weights of a checkpoint into the network; return the optimizer's state."""


def _dropout_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Trainer:
    """State of a running training.

    Parameters
    ----------
    task
        The network and its stars.
    options, process, scheduler
        See `tasks.train`.
    """

    def __init__(
        self,
        task: Task,
        options: TrainingOptions,
        process: Process,
        scheduler: Callable[[torch.optim.Optimizer, int], LRScheduler | None] | None = None,
    ):
        self.task, self.options, self.process = task, options, process
        self.network, self.training, self.validation = task.network, task.training, task.validation
        self.optimizer = task.optimizer(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=options.learning_rate,
            betas=(0.9, options.beta2),
            weight_decay=options.weight_decay,
            fused=process.device.type in ("cpu", "cuda"),  # reads the memory only once
        )
        self.steps_per_epoch = math.ceil(len(self.training) / options.gradient_accumulation)
        self.scheduler = scheduler(self.optimizer, self.steps_per_epoch) if scheduler else None
        self.scaler = torch.amp.GradScaler(
            process.device.type, enabled=options.precision == "float16"
        )
        self.compiled = self.network
        if options.compile:
            # None: compiled once more, for any number of tokens, when the first other one comes.
            dynamic = None if task.shapes_vary else False
            self.compiled = torch.compile(self.network, dynamic=dynamic)
        self.module = self.compiled
        if process.world_size > 1:
            gpu = process.device.type == "cuda"
            self.module = DistributedDataParallel(
                self.compiled,
                device_ids=[process.device] if gpu else None,
                broadcast_buffers=False,  # the only buffer, embed_map, never changes
            )
        # Several processes add their gradients, which happens outside of a graph.
        alone = process.device.type == "cuda" and process.world_size == 1
        self.captured = None
        if options.cuda_graphs and alone:
            parameters = self.optimizer.param_groups[0]["params"]
            self.captured = CapturedGradients(self._new_gradients, parameters)
        elif options.cuda_graphs:
            warnings.warn(
                "training.cuda_graphs needs one process on a GPU: here every kernel is launched by "
                "itself, the result is the same",
                stacklevel=2,
            )
        self.epoch = self.batch = 0
        self.logged: tuple[str, ...] = ()  # logged names, known after the first batch
        self.sums = self.no_sums()

    def no_sums(self) -> dict[str, Tensor]:
        """Initial sums over an epoch's stars; `first_nan` is the first batch with a NaN, or -1."""
        device = self.process.device
        zero = torch.zeros((), dtype=precise(device), device=device)
        # All processes need the same entries, also one without validation stars.
        return {"stars": zero, "first_nan": zero - 1, **dict.fromkeys(self.logged, zero)}

    def _losses(self, module: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and values to log: the loss, its terms if there are several, and metrics."""
        dtype = PRECISIONS[self.options.precision]
        with torch.autocast(self.process.device.type, dtype, enabled=dtype is not None):
            terms, metrics = self.task.losses(module, batch)
        loss = sum(terms.values())
        logged = {"loss": loss, **metrics}
        if len(terms) > 1:
            logged |= terms
        dtype = precise(self.process.device)
        return loss, {name: value.detach().to(dtype) for name, value in logged.items()}

    def _clip(self) -> None:
        """Clip the gradients, if the options ask for it."""
        if self.options.max_gradient_norm:
            nn.utils.clip_grad_norm_(
                self.optimizer.param_groups[0]["params"], self.options.max_gradient_norm
            )

    def _new_gradients(self, batch: Any) -> dict[str, Tensor]:
        """Set the clipped gradients of a step that has one batch; values to log."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, logged = self._losses(self.module, batch)
        loss.backward()
        self._clip()
        return logged

    @staticmethod
    def _add(sums: dict[str, Tensor], logged: dict[str, Tensor], stars: int) -> dict[str, Tensor]:
        """Sums after another batch."""
        added = {name: sums.get(name, 0.0) + stars * value for name, value in logged.items()}
        return {**sums, **added, "stars": sums["stars"] + stars}

    def train_batch(self, batch: Any) -> bool:
        """Accumulate gradients, step after enough batches, and return whether a step was taken."""
        options, total = self.options, len(self.training)
        first = self.batch - self.batch % options.gradient_accumulation
        group = min(options.gradient_accumulation, total - first)  # the last group may be smaller
        torch.manual_seed(_dropout_seed(options.seed, self.epoch, self.batch, self.process.rank))
        steps = self.batch == first + group - 1
        waits = self.process.world_size > 1 and not steps
        if self.captured is not None:
            logged = self.captured(batch)
        else:
            with self.module.no_sync() if waits else contextlib.nullcontext():
                loss, logged = self._losses(self.module, batch)
                self.scaler.scale(loss / group).backward()
        if steps:
            if self.captured is None:
                self.scaler.unscale_(self.optimizer)
                self._clip()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.captured is None:  # a graph writes its gradients where they were
                self.optimizer.zero_grad(set_to_none=True)
            if self.scheduler is not None and getattr(self.scheduler, "every_step", False):
                self.scheduler.step()
        # Everything stays on the device: reading a number would make it wait.
        self.logged = tuple(logged)
        self.sums = self._add(self.sums, logged, len(batch.stars))
        self.sums["first_nan"] = torch.where(
            logged["loss"].isnan() & (self.sums["first_nan"] < 0),
            float(self.batch),
            self.sums["first_nan"],
        )
        self.batch += 1
        return steps

    def end_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch, self.batch, self.sums = self.epoch + 1, 0, self.no_sums()
        if self.scheduler is not None and not getattr(self.scheduler, "every_step", False):
            self.scheduler.step()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means of all logged values over the validation stars of all processes."""
        self.network.eval()
        sums = self.no_sums()
        for batch in self.validation.batches():
            if not len(batch.stars):
                continue
            # Not through DistributedDataParallel: a process may have fewer batches than others.
            _, logged = self._losses(self.compiled, batch)
            sums = self._add(sums, logged, len(batch.stars))
        self.network.train()
        return self.means(sums)

    def means(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Means over the stars of all processes."""
        *totals, stars = self.process.sum(*(sums[name] for name in self.logged), sums["stars"])
        means = zip(self.logged, totals, strict=True)
        return {name: (total / stars).item() for name, total in means}

    def state(self) -> dict[str, Any]:
        """State that is needed, with weights and optimizer, to continue bit for bit.

        All processes must call this together because their sums are added.
        """
        names = ("stars", *self.logged)
        sums = self.process.sum(*(self.sums[name] for name in names))
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "stars_per_batch": self.options.batch_size * self.process.world_size,
            "sums": dict(zip(names, sums, strict=True)),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any], optimizer_state: dict[str, Any]) -> None:
        """Continue from the point at which `state` was taken."""
        together = self.options.batch_size * self.process.world_size
        if state["batch"] and state["stars_per_batch"] != together:
            raise ValueError(
                f"training was interrupted within an epoch of {state['stars_per_batch']} stars a "
                f"batch over all processes; go on with as many, not {together}"
            )
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.logged = tuple(name for name in state["sums"] if name != "stars")
        self.sums = self.no_sums()
        if self.process.rank == 0:
            device = self.process.device
            self.sums |= {k: v.to(device, precise(device)) for k, v in state["sums"].items()}
        self.optimizer.load_state_dict(optimizer_state)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
