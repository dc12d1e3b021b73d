"""Processes that train together: how they find each other, and how they end early."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from stellarperceptron.utils.distributed import process_group, usable_device

pytestmark = pytest.mark.slow

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SUM = """
import torch
from stellarperceptron.utils.distributed import process_group
with process_group("cpu") as process:
    (total,) = process.sum(torch.tensor(process.rank + 1.0))
    print(process.rank, process.world_size, total.item())
"""
WAIT = """
import sys, time
from stellarperceptron.utils.distributed import process_group
from stellarperceptron.utils.data_utils import atomic_output
with process_group("cpu"):
    with atomic_output(sys.argv[1]) as temporary:
        temporary.write_text("half")
        print("writing", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def slurm(monkeypatch):
    """Environment of a task that srun has started."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)

    def put(**entries):
        for name, value in entries.items():
            monkeypatch.setenv(name, str(value))

    put(SLURM_PROCID=0, SLURM_STEP_NUM_TASKS=2, SLURM_LOCALID=0, SLURM_JOB_ID=7)
    return put


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.mark.parametrize("nodes", [1, 2])
def test_tasks_of_srun_find_each_other(slurm, nodes):
    # On one node the first task is at this machine's own address.
    slurm(SLURM_STEP_NUM_NODES=nodes, MASTER_PORT=free_port())
    if nodes == 2:
        slurm(MASTER_ADDR="127.0.0.1")
    tasks = []
    for rank in range(2):
        slurm(SLURM_PROCID=rank, SLURM_LOCALID=rank)
        tasks.append(subprocess.Popen([sys.executable, "-c", SUM], stdout=subprocess.PIPE))
    answers = [task.communicate()[0].decode().split() for task in tasks]
    assert answers == [["0", "2", "3.0"], ["1", "2", "3.0"]]


def test_missing_address_is_named(slurm):
    slurm(SLURM_STEP_NUM_NODES=2)
    with pytest.raises(ValueError, match=r"process 0 of 2, but MASTER_ADDR .*slurm_nodes\.sh"):
        process_group("cpu").__enter__()


def test_batch_script_without_srun_is_alone(slurm, monkeypatch):
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    with process_group("cpu") as process:
        assert (process.rank, process.world_size) == (0, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_notice_before_training_ends_cleanly(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT, str(tmp_path / "file")], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"writing\n"
    os.kill(process.pid, number)
    assert process.wait() == 0
    process.stdout.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["foo", "gpu", "cuda"])
def test_devices_that_are_not_there(device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=f"device '?{device}"):
        usable_device(device)
