"""What a training gets over, and what ends it: the policy, without Ray."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from mmray.errors import JobFailed, RefusedError, StorageError
from mmray.train.lost import IDLE, RESTARTS, Losses, is_echo, own_fault, words_of


def broken_off() -> BaseException:
    """What gloo raises in a worker whose peer doesn't come."""
    from concurrent.futures import ThreadPoolExecutor

    store = dist.HashStore()

    def join(rank: int) -> dist.ProcessGroupGloo:
        return dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=1))

    with ThreadPoolExecutor(2) as pool:
        group, _peer = pool.map(join, range(2))
    try:
        group.allreduce([torch.ones(1)]).wait()
    except Exception as error:
        return error
    raise AssertionError("the peer did not come, and nothing was raised")


def test_the_end_of_a_peer_is_told_from_an_own_fault() -> None:
    assert is_echo(broken_off())
    assert is_echo(dist.DistBackendError("NCCL error: remote process exited"))
    for own in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        torch.OutOfMemoryError("CUDA out of memory"),
        ValueError("no such label"),
        StorageError("s3://bucket/key", "503"),
    ):
        assert not is_echo(own)


@pytest.mark.parametrize(
    "error",
    [
        RefusedError("fewer samples than workers"),
        StorageError("s3://bucket/key", "403"),
        JobFailed("too little memory"),
        FileNotFoundError(2, "No such file", "here"),
    ],
)
def test_errors_with_words_of_their_own_keep_them(error: Exception) -> None:
    assert own_fault(error, "worker 1") is error


def test_other_errors_are_faults_of_ours() -> None:
    failed = own_fault(KeyError("step"), "worker 3")
    assert isinstance(failed, JobFailed)
    assert "please report it: worker 3: KeyError: 'step'" in str(failed)


class Group(Exception):
    """As Ray Train's WorkerGroupError has it."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        self.worker_failures = failures


class Checked(Exception):
    """As its WorkerHealthCheckFailedError has it."""

    def __init__(self, failure: Exception) -> None:
        super().__init__("A worker health check failed.\nWorker info: ...")
        self.health_check_failure = failure


def test_a_loss_is_told_by_who_was_lost() -> None:
    echo = RuntimeError("[/x/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    died = Checked(RuntimeError("The actor died.\n\tpid: 7\nIts worker process has died."))
    words = words_of(Group({0: echo, 1: died}))
    assert words == "worker 1: The actor died. Its worker process has died."
    assert words_of(Group({0: echo})).endswith("Connection closed by peer")
    assert words_of(TimeoutError("60 seconds")) == "60 seconds"
    assert len(words_of(Group({0: ValueError("x" * 9999)}))) < 420


def test_losses_with_headway_are_got_over() -> None:
    losses = Losses()
    for step in range(RESTARTS):
        losses.add(step, "killed")
    with pytest.raises(JobFailed, match=rf"lost {RESTARTS + 1} times; the last: worker 1: killed"):
        losses.add(RESTARTS, "worker 1: killed")


def test_losses_without_headway_end_it() -> None:
    losses = Losses()
    losses.add(5, "killed")
    losses.add(5, "killed")
    losses.add(6, "killed")  # a step that had not been done before
    for _ in range(IDLE - 1):
        losses.add(-1, "killed")
    with pytest.raises(JobFailed, match="without headway; the last: out of memory"):
        losses.add(6, "out of memory")
