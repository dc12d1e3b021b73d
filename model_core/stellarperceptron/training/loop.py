"""The training loop: epochs, metrics, checkpoints, interruptions."""

import contextlib
import copy
import math
import time
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from stellarperceptron.network.kernels.memory import freed_memory_kept
from stellarperceptron.network.tensor_files import load_tensors, not_finite
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.run.folder import RunFolder
from stellarperceptron.training.stars.prefetch import made_ahead, made_beside, spare_cores
from stellarperceptron.training.step import Task, Trainer
from stellarperceptron.utils.data_utils import written_by
from stellarperceptron.utils.distributed import Process, Termination

__all__ = ["PEAK_FLOPS", "TrainingError", "run_training"]

# Peak rates in dense bfloat16, from the data sheets [FLOP/s].
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


_REMEDY = "A lower learning rate or max_gradient_norm = 1 helps against divergence"


# Columns of the published tables of metrics between time and learning rate.
PUBLISHED_METRICS = ("loss", "mse_loss", "val_loss", "val_mse_loss")


class TrainingError(RuntimeError):
    """Training cannot continue; the message names the batch and the last good checkpoint."""


class _Checkpoints:
    """Metrics and checkpoints of a training, written to its folder if it has one.

    The best network is kept in memory and written together with the next checkpoint. Otherwise a
    training that improves in each of hundreds of short epochs would spend its time writing. A
    resumed training finds the best network of the epochs before its checkpoint.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder | None):
        self.trainer, self.folder = trainer, folder
        self.history: list[dict[str, float]] = []
        self.best_loss = math.inf
        self._best: tuple[torch.nn.Module, int] | None = None

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        trainer, folder = self.trainer, self.folder
        first = folder is not None and trainer.process.rank == 0
        checkpoint = trainer.process.first(folder.newest_checkpoint() if first else None)
        if checkpoint is None:
            return
        optimizer_state = trainer.task.load(checkpoint)
        trainer.restore(load_tensors(checkpoint / "training_state.pt"), optimizer_state)
        self.history = folder.read_metrics(before_epoch=trainer.epoch)
        losses = [row["val_loss"] for row in self.history]
        self.best_loss = min((x for x in losses if not math.isnan(x)), default=math.inf)
        folder.log(f"going on from {checkpoint}, epoch {trainer.epoch}, batch {trainer.batch}")

    def epoch_is_over(self, row: dict[str, float]) -> None:
        """Record the metrics of an epoch, keep the best network, save a checkpoint if due."""
        trainer, folder, options = self.trainer, self.folder, self.trainer.options
        self.history.append(row)
        better = row["val_loss"] < self.best_loss
        if better:
            self.best_loss = row["val_loss"]
        if folder is None:
            return
        if better and trainer.process.rank == 0:
            self._best = copy.deepcopy(trainer.network), trainer.epoch
        every = options.checkpoint_every_n_epochs
        last = trainer.epoch >= options.epochs
        due = last or bool(every and trainer.epoch % every == 0)
        folder.log_epoch(row, options.epochs)
        folder.write_metrics(self.history, table=due, figure=last)
        if due:
            self._save(f"epoch_{trainer.epoch}")
            folder.prune(options.keep_checkpoints)

    def interrupt(self) -> None:
        """Save a checkpoint in the middle of an epoch."""
        if self.folder is None:
            return
        if self.history:
            self.folder.write_metrics(self.history, table=True, figure=True)
        self._save("interrupted")
        epoch = self.trainer.epoch + 1
        self.folder.log(f"asked to stop in epoch {epoch}: saved, resume continues from here")

    def require_finite(self) -> None:
        """Check the weights after the last step; the loss only checks those before it.

        Raises
        ------
        TrainingError
            A weight is NaN or infinite; nothing is saved.
        """
        state = self.trainer.network.state_dict()
        if name := not_finite(state):
            epoch, last = self.trainer.epoch + 1, _last_checkpoint(self.folder)
            raise TrainingError(
                f"the network diverged in epoch {epoch}: {name} is not finite; {last}. {_REMEDY}"
            )

    def _save(self, name: str) -> None:
        trainer, folder = self.trainer, self.folder
        state = trainer.state()
        if trainer.process.rank != 0:
            return
        if self._best is not None:
            network, epoch = self._best
            trainer.task.save(folder.path / "best", network, None, epoch, None)
            self._best = None
        trainer.task.save(
            folder.path / name, trainer.network, trainer.optimizer, trainer.epoch, state
        )


def run_training(
    task: Task,
    options: TrainingOptions,
    process: Process,
    *,
    scheduler: Callable[[torch.optim.Optimizer, int], LRScheduler | None] | None = None,
    folder: RunFolder | None = None,
    resume: bool = True,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train a network on its stars; see `training.tasks.train`.

    Raises
    ------
    TrainingError
        The loss is NaN, or the weights after the last step are not finite.
    FileExistsError
        `resume` is False, and the folder has checkpoints of an earlier training.
    SystemExit
        With code 0, after SIGTERM or SIGUSR1 and a checkpoint.
    KeyboardInterrupt
        After Ctrl-C and a checkpoint.
    """
    if folder:
        folder.open()
    try:
        history = _train(task, options, process, scheduler, folder, resume, progress)
    finally:
        if folder:
            folder.close()
    task.network.eval()
    return history


def _train(
    task: Task,
    options: TrainingOptions,
    process: Process,
    scheduler: Callable[[torch.optim.Optimizer, int], LRScheduler | None] | None,
    folder: RunFolder | None,
    resume: bool,
    progress: bool,
) -> list[dict[str, float]]:
    """Train in a folder that this process has locked; see `run_training`."""
    task.network.train()
    trainer = Trainer(task, options, process, scheduler)
    checkpoints = _Checkpoints(trainer, folder)
    if resume:
        checkpoints.restore()
    elif folder:
        folder.require_unused()
    if folder:
        folder.log(_description(trainer))
    batches = len(trainer.training)
    bar = tqdm(
        total=options.epochs * batches,
        initial=trainer.epoch * batches + trainer.batch,
        unit="batch",
        disable=None if progress and process.rank == 0 else True,
    )
    random = torch.random.fork_rng(
        devices=[process.device] if process.device.type == "cuda" else []
    )
    memory = freed_memory_kept() if process.device.type == "cpu" else contextlib.nullcontext()
    with bar, Termination(interrupts=True) as termination, random, memory:
        while trainer.epoch < options.epochs:
            start, first_batch = time.perf_counter(), trainer.batch
            lr = trainer.optimizer.param_groups[0]["lr"]
            _train_epoch(trainer, checkpoints, termination, bar)
            stars = process.sum(trainer.sums["stars"])[0].item()
            means = trainer.means(trainer.sums)
            if options.terminate_on_nan and not math.isfinite(means["loss"]):
                raise TrainingError(_nan_message(trainer, folder))
            checkpoints.require_finite()
            elapsed = time.perf_counter() - start
            validates = len(trainer.validation.rows) > 0
            validation = trainer.validate() if validates else dict.fromkeys(means, math.nan)
            rate = (1 - first_batch / batches) * stars / elapsed
            means |= {f"val_{name}": value for name, value in validation.items()}
            row = {
                "time": time.perf_counter() - start,
                **{name: means[name] for name in PUBLISHED_METRICS},
                "lr": lr,
                "epoch": trainer.epoch + 1,
                "stars_per_s": rate,
                "tflops": rate * task.flops_per_star / 1e12,
                "mfu": rate * task.flops_per_star / _peak(process),
                **{name: mean for name, mean in means.items() if name not in PUBLISHED_METRICS},
            }
            trainer.end_epoch()
            checkpoints.epoch_is_over(row)
            process.barrier()
        if _asked(process, termination):  # during the last validation
            termination.end()
    return checkpoints.history


def _train_epoch(
    trainer: Trainer, checkpoints: _Checkpoints, termination: Termination, bar: tqdm
) -> None:
    """Train the rest of an epoch; after a termination signal, save and exit."""
    process, total = trainer.process, len(trainer.training)
    shown = time.monotonic()
    batches = trainer.training.batches(trainer.epoch, start=trainer.batch)
    if process.device.type == "cpu" and spare_cores(process.world_size) > 0:
        batches = made_ahead(batches)
    elif trainer.captured is not None:
        batches = made_beside(batches, process.device)
    for batch in batches:
        stepped = trainer.train_batch(batch)
        bar.update()
        if not bar.disable and time.monotonic() - shown > 2:
            shown = time.monotonic()
            mean = (trainer.sums["loss"] / trainer.sums["stars"]).item()
            stars = bar.format_dict["rate"] or 0.0
            stars *= trainer.options.batch_size * process.world_size
            bar.set_description(f"epoch {trainer.epoch + 1} loss {mean:.3f}, {stars:.0f} stars/s")
        # All processes must stop after the same batch, and none between accumulated gradients.
        # Asking at every batch would slow down GPUs.
        due = process.world_size == 1 or trainer.batch % 8 == 0 or trainer.batch == total
        if stepped and due and _asked(process, termination):
            loss = process.sum(trainer.sums["loss"])[0]  # of all processes, which stop together
            if trainer.options.terminate_on_nan and not torch.isfinite(loss):
                raise TrainingError(_nan_message(trainer, checkpoints.folder))
            checkpoints.require_finite()
            checkpoints.interrupt()
            process.barrier()
            termination.end()


def _asked(process: Process, termination: Termination) -> bool:
    """Whether any process was asked to stop; all processes have to call this together."""
    if process.world_size == 1:
        return termination.received
    flag = torch.tensor(float(termination.received), device=process.device)
    return bool(process.sum(flag)[0] > 0)


def _nan_message(trainer: Trainer, folder: RunFolder | None) -> str:
    first = int(trainer.sums["first_nan"].item())
    where = f"batch {first + 1}" if first >= 0 else "another process"
    return (
        f"the loss is NaN since epoch {trainer.epoch + 1}, {where}; {_last_checkpoint(folder)}. "
        f"{_REMEDY}"
    )


def _last_checkpoint(folder: RunFolder | None) -> str:
    try:
        last = folder.newest_checkpoint() if folder else None
    except ValueError:
        last = None
    return f"the last good checkpoint is {last}" if last else "no checkpoint was saved before"


def _peak(process: Process) -> float:
    """Peak rate of the devices of all processes [FLOP/s]; NaN if unknown."""
    if process.device.type == "cuda":
        name = torch.cuda.get_device_name(process.device)
        for key, peak in PEAK_FLOPS.items():
            if key in name:
                return peak * process.world_size
    return math.nan


def _description(trainer: Trainer) -> str:
    options, process = trainer.options, trainer.process
    trainable = sum(p.numel() for p in trainer.network.parameters() if p.requires_grad)
    effective = options.batch_size * process.world_size * options.gradient_accumulation
    return (
        f"stellarperceptron {', commit '.join(written_by().values())}: "
        f"{len(trainer.training.rows)} training and {len(trainer.validation.rows)} validation "
        f"stars; {trainable} trainable parameters; {process.world_size} processes on "
        f"{process.device.type}; effective batch {options.batch_size} x {process.world_size} x "
        f"{options.gradient_accumulation} = {effective}; {trainer.steps_per_epoch} steps an epoch; "
        f"learning rate {options.learning_rate:g}"
    )
