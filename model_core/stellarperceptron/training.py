"""The training loop: one process or many, never stalling the device, never losing a day's work."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from stellarperceptron.config import PRECISIONS, TrainingOptions
from stellarperceptron.distributed import Process, Termination
from stellarperceptron.nn_utils import mean_squared_error, robust_mean_squared_error
from stellarperceptron.run_folder import RunFolder
from stellarperceptron.training_data import Batch, TrainingData, TrainingGenerator, fewest_tokens

__all__ = ["PEAK_FLOPS", "TrainingError", "train"]

# Dense bfloat16 peaks of the data sheets [FLOP/s].
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


class TrainingError(RuntimeError):
    """Training cannot go on; the message says since when and what is left."""


def _dropout_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class _Trainer:
    """State of a training that is under way."""

    def __init__(
        self,
        network: nn.Module,
        data: TrainingData,
        training_rows: np.ndarray,
        validation_rows: np.ndarray,
        context_length: int,
        options: TrainingOptions,
        process: Process,
        scheduler: Callable[[torch.optim.Optimizer, int], LRScheduler] | None,
    ):
        self.network, self.data, self.options, self.process = network, data, options, process
        shared = {
            "labels_per_star": options.labels_per_star,
            "seed": options.seed,
            "rank": process.rank,
            "world_size": process.world_size,
        }
        self.training = TrainingGenerator(
            data,
            training_rows,
            options.batch_size,
            context_length,
            outputs_padding=options.outputs_padding,
            narrow_share=options.narrow_share,
            **shared,
        )
        self.validation = TrainingGenerator(
            data,
            validation_rows,
            options.batch_size * options.val_batchsize_factor,
            context_length,
            fixed=True,
            **shared,
        )
        # Where every star fills its context, no attention needs a mask.
        everyone = np.concatenate([training_rows, validation_rows])
        fewest = fewest_tokens(data, everyone)
        # (An augmentation may make a pixel bad.)
        fills = fewest >= self.training.context_length
        self.complete = fills and not options.outputs_padding and data.augment is None
        trainable = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trainable,
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
            fused=process.device.type in ("cpu", "cuda"),  # one pass over the memory
        )
        self.steps_per_epoch = math.ceil(len(self.training) / options.gradient_accumulation)
        self.scheduler = scheduler(self.optimizer, self.steps_per_epoch) if scheduler else None
        self.scaler = torch.amp.GradScaler(
            process.device.type, enabled=options.precision == "float16"
        )
        self.compiled = torch.compile(network) if options.compile else network
        self.module = self.compiled
        if process.world_size > 1:
            gpu = process.device.type == "cuda"
            self.module = DistributedDataParallel(
                self.compiled,
                device_ids=[process.device] if gpu else None,
                broadcast_buffers=False,  # the only one, embed_map, never changes
            )
        self.epoch = self.batch = 0
        self.sums = self._no_sums()

    def _no_sums(self) -> dict[str, Tensor]:
        zero = torch.zeros((), dtype=torch.float64, device=self.process.device)
        return {"loss": zero, "mse": zero, "stars": zero, "first_nan": zero - 1}

    def _losses(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        encoding = self.data.encode(batch, self.network.embedding_layer.encode_wavelength)
        dtype = PRECISIONS[self.options.precision]
        with torch.autocast(self.process.device.type, dtype, enabled=dtype is not None):
            value, logvar = module(
                batch.tokens,
                batch.inputs,
                batch.request_tokens,
                encoding,
                batch.pixels,
                complete=self.complete,
            )
        value, logvar = value.float(), logvar.float()
        loss = robust_mean_squared_error(batch.labels, value, logvar, batch.label_errors)
        return loss, mean_squared_error(batch.labels, value.detach())

    def train_batch(self, batch: Batch) -> bool:
        """Accumulate gradients; step when enough batches have come. Whether it did."""
        options, total = self.options, len(self.training)
        first = self.batch - self.batch % options.gradient_accumulation
        group = min(options.gradient_accumulation, total - first)  # the last one may be smaller
        torch.manual_seed(_dropout_seed(options.seed, self.epoch, self.batch, self.process.rank))
        steps = self.batch == first + group - 1
        waits = self.process.world_size > 1 and not steps
        with self.module.no_sync() if waits else contextlib.nullcontext():
            loss, mse = self._losses(self.module, batch)
            self.scaler.scale(loss / group).backward()
        if steps:
            self.scaler.unscale_(self.optimizer)
            if options.max_gradient_norm:
                nn.utils.clip_grad_norm_(
                    self.optimizer.param_groups[0]["params"], options.max_gradient_norm
                )
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            if self.scheduler is not None and getattr(self.scheduler, "every_step", False):
                self.scheduler.step()
        count, loss = len(batch.stars), loss.detach().double()
        s = self.sums
        # Everything stays on the device: reading a number would stall it.
        self.sums = {
            "loss": s["loss"] + count * loss,
            "mse": s["mse"] + count * mse.double(),
            "stars": s["stars"] + count,
            "first_nan": torch.where(
                loss.isnan() & (s["first_nan"] < 0), float(self.batch), s["first_nan"]
            ),
        }
        self.batch += 1
        return steps

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Loss and mean squared error of all validation stars, over all processes."""
        self.network.eval()
        sums = self._no_sums()
        for batch in self.validation.batches():
            if not len(batch.stars):
                continue
            # Not through DistributedDataParallel: a process may have fewer batches than others.
            loss, mse = self._losses(self.compiled, batch)
            count = len(batch.stars)
            sums["loss"] = sums["loss"] + count * loss.double()
            sums["mse"] = sums["mse"] + count * mse.double()
            sums["stars"] = sums["stars"] + count
        self.network.train()
        loss, mse, stars = self.process.sum(sums["loss"], sums["mse"], sums["stars"])
        return (loss / stars).item(), (mse / stars).item()

    def state(self) -> dict[str, Any]:
        """What is needed, beside the weights and the optimizer, to go on bit for bit.

        All processes must ask together: their sums are added up.
        """
        names = ("loss", "mse", "stars")
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
        """Go on where `state` was taken."""
        together = self.options.batch_size * self.process.world_size
        if state["batch"] and state["stars_per_batch"] != together:
            raise ValueError(
                f"training was interrupted within an epoch of {state['stars_per_batch']} stars a "
                f"batch over all processes; go on with as many, not {together}"
            )
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.sums = self._no_sums()
        if self.process.rank == 0:
            self.sums |= {k: v.to(self.process.device) for k, v in state["sums"].items()}
        self.optimizer.load_state_dict(optimizer_state)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])


def train(
    model: Any,
    data: TrainingData,
    training_rows: np.ndarray,
    validation_rows: np.ndarray,
    options: TrainingOptions,
    process: Process,
    *,
    scheduler: Callable[[torch.optim.Optimizer, int], LRScheduler] | None = None,
    folder: RunFolder | None = None,
    resume: bool = True,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train a model.

    Parameters
    ----------
    model : StellarPerceptron
        Its network is trained in place, as far as it is not frozen.
    data
        All stars, on the device of `process`.
    training_rows, validation_rows
        Which of them to train and to validate on; the latter may be none.
    options
        How to train.
    process
        See `distributed.process_group`.
    scheduler
        Gives a learning-rate schedule, from the optimizer and the number of steps in an epoch. It
        is stepped every epoch, or every optimizer step when it has an attribute `every_step`
        that is true. None: the learning rate stays.
    folder
        Where logs and checkpoints go; None: nowhere.
    resume
        Go on from the newest checkpoint in `folder`.
    progress
        Show a progress bar when the output is a terminal.

    Returns
    -------
    list of dict
        Metrics, epoch by epoch; see `RunFolder`.

    Raises
    ------
    TrainingError
        A loss is NaN.
    SystemExit
        With code 0, after SIGTERM or SIGUSR1 and a checkpoint.
    """
    network = model.torch_model.train()
    trainer = _Trainer(
        network,
        data,
        training_rows,
        validation_rows,
        model.config.context_length,
        options,
        process,
        scheduler,
    )
    history: list[dict[str, float]] = []
    checkpoint = process.first(folder.newest_checkpoint() if folder and resume else None)
    if checkpoint is not None:
        folder.restore(checkpoint, network, trainer.restore)
        model.epoch = trainer.epoch
        history = folder.read_metrics(before_epoch=trainer.epoch)
        folder.log(f"going on from {checkpoint}, epoch {trainer.epoch}, batch {trainer.batch}")
    if folder:
        folder.log(_description(model, trainer))
    flops = 3 * model.flops_per_star(
        trainer.training.context_length,
        len(data.label_tokens) if options.labels_per_star == "all" else 1,
    )
    best = min((row["val_loss"] for row in history), default=math.inf)
    bar = tqdm(
        total=options.epochs * len(trainer.training),
        initial=trainer.epoch * len(trainer.training) + trainer.batch,
        unit="batch",
        disable=None if progress and process.rank == 0 else True,
    )
    with (
        bar,
        Termination() as termination,
        torch.random.fork_rng(devices=[process.device] if process.device.type == "cuda" else []),
    ):
        while trainer.epoch < options.epochs:
            start, first_batch = time.perf_counter(), trainer.batch
            lr = trainer.optimizer.param_groups[0]["lr"]
            _train_epoch(trainer, model, folder, termination, bar)
            loss, mse, stars = process.sum(*(trainer.sums[k] for k in ("loss", "mse", "stars")))
            if options.terminate_on_nan and not math.isfinite(loss.item()):
                raise TrainingError(_nan_message(trainer, folder))
            elapsed = time.perf_counter() - start
            val_loss, val_mse = trainer.validate() if len(validation_rows) else (math.nan,) * 2
            share = 1 - first_batch / len(trainer.training)
            rate = share * stars.item() / elapsed
            row = {
                "time": time.perf_counter() - start,
                "loss": (loss / stars).item(),
                "mse_loss": (mse / stars).item(),
                "val_loss": val_loss,
                "val_mse_loss": val_mse,
                "lr": lr,
                "epoch": trainer.epoch + 1,
                "stars_per_s": rate,
                "tflops": rate * flops / 1e12,
                "mfu": rate * flops / _peak(process),
            }
            history.append(row)
            trainer.epoch, trainer.batch, trainer.sums = trainer.epoch + 1, 0, trainer._no_sums()
            model.epoch = trainer.epoch
            scheduler_ = trainer.scheduler
            if scheduler_ is not None and not getattr(scheduler_, "every_step", False):
                scheduler_.step()
            if folder:
                folder.write_metrics(history)
                if val_loss < best:
                    folder.save("best", model, trainer.optimizer, trainer.state())
                every = options.checkpoint_every_n_epochs
                if trainer.epoch == options.epochs or (every and trainer.epoch % every == 0):
                    name = f"epoch_{trainer.epoch}"
                    folder.save(name, model, trainer.optimizer, trainer.state())
                    folder.prune(options.keep_checkpoints)
            best = min(best, val_loss)
            process.barrier()
    network.eval()
    return history


def _train_epoch(trainer: _Trainer, model, folder: RunFolder | None, termination, bar) -> None:
    """Train what is left of an epoch; after a notice of termination, save and exit."""
    process, total = trainer.process, len(trainer.training)
    shown = time.monotonic()
    for batch in trainer.training.batches(trainer.epoch, start=trainer.batch):
        stepped = trainer.train_batch(batch)
        bar.update()
        if not bar.disable and time.monotonic() - shown > 2:
            shown = time.monotonic()
            mean = (trainer.sums["loss"] / trainer.sums["stars"]).item()
            stars = bar.format_dict["rate"] or 0.0
            stars *= trainer.options.batch_size * process.world_size
            bar.set_description(f"epoch {trainer.epoch + 1} loss {mean:.3f}, {stars:.0f} stars/s")
        # All processes must stop after the same batch, and none with gradients half gathered;
        # asking each time would cost time on GPUs.
        due = process.world_size == 1 or trainer.batch % 8 == 0 or trainer.batch == total
        if not (stepped and due):
            continue
        asked = termination.received
        if process.world_size > 1:
            flag = torch.tensor(float(asked), device=process.device)
            asked = bool(process.sum(flag)[0] > 0)
        if asked:
            if trainer.options.terminate_on_nan and trainer.sums["first_nan"] >= 0:
                raise TrainingError(_nan_message(trainer, folder))
            if folder:
                folder.save("interrupted", model, trainer.optimizer, trainer.state())
                folder.log(
                    f"asked to stop in epoch {trainer.epoch + 1}: saved, goes on with resume"
                )
            process.barrier()
            raise SystemExit(0)


def _nan_message(trainer: _Trainer, folder: RunFolder | None) -> str:
    first = int(trainer.sums["first_nan"].item())
    where = f"batch {first + 1}" if first >= 0 else "another process"
    last = folder.newest_checkpoint() if folder else None
    good = f"the last good checkpoint is {last}" if last else "no checkpoint was saved before"
    return (
        f"the loss is NaN since epoch {trainer.epoch + 1}, {where}; {good}. A lower learning rate "
        "or max_gradient_norm = 1 helps against divergence"
    )


def _peak(process: Process) -> float:
    """Peak rate of all processes' devices [FLOP/s]; NaN where it is not known."""
    if process.device.type == "cuda":
        name = torch.cuda.get_device_name(process.device)
        for key, peak in PEAK_FLOPS.items():
            if key in name:
                return peak * process.world_size
    return math.nan


def _description(model, trainer: _Trainer) -> str:
    options, process = trainer.options, trainer.process
    trainable = sum(p.numel() for p in model.torch_model.parameters() if p.requires_grad)
    effective = options.batch_size * process.world_size * options.gradient_accumulation
    return (
        f"{len(trainer.training.rows)} training and {len(trainer.validation.rows)} validation "
        f"stars; {trainable} trainable parameters; {process.world_size} processes on "
        f"{process.device.type}; effective batch {options.batch_size} x {process.world_size} x "
        f"{options.gradient_accumulation} = {effective}; {trainer.steps_per_epoch} steps an epoch; "
        f"learning rate {options.learning_rate:g}"
    )
