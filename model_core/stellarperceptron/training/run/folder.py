"""The folder of a training: configuration, logs, metrics, checkpoints.

`training.log`, `training_metrics.csv`, `training_system_info.log`, `loss.png`, TensorBoard events
if TensorBoard is installed, and checkpoint folders `epoch_<n>`, `best` and `interrupted`. Only
the first process writes.
"""

import csv
import datetime
import json
import math
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from stellarperceptron.network.tensor_files import load_tensors
from stellarperceptron.training.run.configuration import settle_configuration
from stellarperceptron.utils.data_utils import atomic_output, check_output_folder
from stellarperceptron.utils.locks import FileLock

__all__ = ["RunFolder"]


class RunFolder:
    """The folder of one training, locked for other trainings until `close`.

    Parameters
    ----------
    path
        The folder; created if it is missing.
    configuration
        All settings that affect the result of the training, in values that JSON can hold.
    rank
        Rank of this process. All but the first process only read.
    fresh
        Start again: remove the results of an earlier training first.
    resume
        Allow checkpoints of an earlier training. False: refuse a folder that has any.
    echo
        Also print the lines of the log.
    grows
        Dotted key of a number that may be increased when a run is continued: its epochs.
    fixed
        Reason why it must not be increased; empty if it may be.

    Raises
    ------
    ValueError
        The folder belongs to another configuration; the message lists the differences.
    BusyError
        Another process trains into the folder; the message of this `OSError` names it.
    FileExistsError
        The folder has checkpoints, and neither `resume` nor `fresh` is True.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        configuration: dict[str, Any],
        rank: int = 0,
        *,
        fresh: bool = False,
        resume: bool = True,
        echo: bool = False,
        grows: str | None = None,
        fixed: str = "",
    ):
        self.path = Path(path)
        self.rank, self.echo = rank, echo
        self._lock = FileLock(self.path / ".training.lock", f"the training folder {self.path}")
        self._events = None
        self._written = self._drawn = self._echoed = -math.inf
        if rank != 0:
            if not fresh:  # the first process removes the configuration
                settle_configuration(
                    self.path, configuration, grows=grows, fixed=fixed, write=False
                )
            return
        self.open()
        try:
            if fresh:
                self._clear()
            elif not resume:
                self.require_unused()
            raised = settle_configuration(self.path, configuration, grows=grows, fixed=fixed)
            (self.path / "training_system_info.log").write_text(_system(), encoding="utf-8")
            if raised:
                self.log(raised)
        except BaseException:
            self.close()
            raise

    def open(self) -> None:
        """Lock the folder for this training, unless it is locked already.

        Raises
        ------
        BusyError
            Another process trains into the folder.
        """
        if self.rank == 0:
            check_output_folder(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()

    def require_unused(self) -> None:
        """Check that the folder has no checkpoint of an earlier training.

        Raises
        ------
        FileExistsError
            There is one, which would be mixed up with those of the new training.
        """
        if used := [*self._others(), *self._epochs()]:
            raise FileExistsError(
                f"{self.path} holds the checkpoint {used[-1].name} of an earlier training: give "
                "resume=True to go on from it, or choose another folder"
            )

    def _others(self) -> list[Path]:
        return [p for p in (self.path / "best", self.path / "interrupted") if p.is_dir()]

    def _clear(self) -> None:
        """Remove checkpoints, metrics and configuration of an earlier training."""
        # Files that indicate a result are removed first.
        for name in ("complete", "configuration.json", "training_metrics.csv"):
            (self.path / name).unlink(missing_ok=True)
        for folder in [*self._epochs(), *self._others(), self.path / "tensorboard"]:
            shutil.rmtree(folder, ignore_errors=True)

    def log(self, line: str, echo: bool = True) -> None:
        """Append a line to `training.log`, and print it if `echo` is set."""
        if self.rank == 0:
            if self.echo and echo:
                tqdm.write(line, file=sys.stderr)
            with open(self.path / "training.log", "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def write_metrics(
        self, history: list[dict[str, float]], *, table: bool = False, figure: bool = False
    ) -> None:
        """Write the metrics of all epochs so far.

        Since epochs may be shorter than the time for writing, the table `training_metrics.csv` is
        written at most once per second and the figure `loss.png` once per 20 seconds, unless
        requested.

        Parameters
        ----------
        history
            Metrics of all epochs.
        table, figure
            Write the table, or the figure, in any case.
        """
        if self.rank != 0:
            return
        now, last = time.monotonic(), history[-1]
        if table or now - self._written > 1:
            self._written = now
            with (
                atomic_output(self.path / "training_metrics.csv") as temporary,
                open(temporary, "w", newline="", encoding="utf-8") as file,
            ):
                writer = csv.DictWriter(file, fieldnames=list(last))
                writer.writeheader()
                writer.writerows(history)
        if figure or now - self._drawn > 20:
            self._drawn = now
            _plot(history, self.path / "loss.png")

    def log_epoch(self, metrics: dict[str, float], epochs: int) -> None:
        """Write the metrics of an epoch, one of so many, to the log and to TensorBoard."""
        if self.rank != 0:
            return
        now = time.monotonic()
        echo = now - self._echoed > 5
        self._echoed = now if echo else self._echoed
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        epoch = int(metrics["epoch"])
        left = datetime.timedelta(seconds=round((epochs - epoch) * metrics["time"]))
        values = "  ".join(f"{k} {v:.5g}" for k, v in finite.items() if k != "epoch")
        self.log(f"epoch {epoch}/{epochs}, {left} left  {values}", echo)
        if self._events is None:
            self._events = _open_tensorboard(self.path / "tensorboard", epoch) or False
        if self._events:
            for key, value in finite.items():
                self._events.add_scalar(key, value, epoch)

    def close(self) -> None:
        """Flush TensorBoard's writer and unlock the folder."""
        if self._events:
            self._events.close()
        self._events = None
        self._lock.release()

    def read_metrics(self, before_epoch: int) -> list[dict[str, float]]:
        """Metrics of the epochs up to `before_epoch`, which a resumed training does not repeat."""
        file = self.path / "training_metrics.csv"
        if not file.exists():
            return []
        with open(file, newline="", encoding="utf-8") as lines:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(lines)]
        return [row for row in rows if row["epoch"] <= before_epoch]

    def prune(self, keep: int) -> None:
        """Remove all `epoch_<n>` but the last `keep` (0 keeps all), and `interrupted`."""
        if self.rank != 0:
            return
        for folder in self._epochs()[:-keep] if keep else []:
            shutil.rmtree(folder)
        # There is a newer checkpoint now.
        shutil.rmtree(self.path / "interrupted", ignore_errors=True)

    def _epochs(self) -> list[Path]:
        folders = [p for p in self.path.glob("epoch_*") if p.name[6:].isdigit()]
        return sorted(folders, key=lambda p: int(p.name[6:]))

    def newest_checkpoint(self) -> Path | None:
        """Undamaged checkpoint of the latest epoch and batch; None without checkpoints.

        Newer but damaged ones are renamed to ``NAME.damaged`` and listed in the log.

        Raises
        ------
        ValueError
            All checkpoints are damaged; none is renamed.
        """
        names = [*self._epochs(), self.path / "interrupted"]
        damaged: list[tuple[Path, ValueError]] = []
        sound: list[tuple[tuple[int, int], Path]] = []
        for folder in reversed([p for p in names if (p / "training_state.pt").is_file()]):
            try:
                state = load_tensors(folder / "training_state.pt")
                load_tensors(folder / "weights.pt")
                json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
                sound.append(((int(state["epoch"]), int(state["batch"])), folder))
            except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
                damaged.append((folder, error))
                continue
            if folder.name != "interrupted":  # older ones are from earlier epochs
                break
        if damaged and not sound:
            raise ValueError(
                f"no checkpoint in {self.path} can be read ({damaged[0][1]}): start anew with "
                "--no-resume (fresh=True), or choose another folder"
            )
        for folder, error in damaged if self.rank == 0 else ():
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            self.log(f"{folder} is damaged and set aside as {aside.name}: {error}")
        return max(sound)[1] if sound else None


def _open_tensorboard(path: Path, epoch: int) -> Any:
    """TensorBoard's writer, without later epochs of an interrupted training."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(path), purge_step=epoch)


def _system() -> str:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines = {
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": ", ".join(gpus) or "none",
        "processes": os.environ.get("WORLD_SIZE", "1"),
        "slurm job": os.environ.get("SLURM_JOB_ID", "none"),
    }
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def _plot(history: list[dict[str, float]], path: Path) -> None:
    # Imported here because matplotlib is slow to import. Its object interface does not affect the
    # figures of a notebook.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    for key, label in (("loss", "training"), ("val_loss", "validation")):
        values = [row[key] for row in history]
        if any(map(math.isfinite, values)):
            axes.plot(epochs, values, label=label, marker="." if len(epochs) < 30 else None)
    axes.set(xlabel="epoch", ylabel="loss (negative log-likelihood)")
    rates = axes.twinx()
    rates.plot(epochs, [row["lr"] for row in history], color="0.6", lw=1)
    rates.set_yscale("log" if any(row["lr"] > 0 for row in history) else "linear")
    rates.set_ylabel("learning rate", color="0.45")
    rates.tick_params(axis="y", which="both", colors="0.45")
    axes.legend()
    with atomic_output(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
