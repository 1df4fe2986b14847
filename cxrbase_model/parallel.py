"""Several processes that train as one: each takes its share of every batch, gradients are summed, all take the same step.

Start them as torch.distributed wants (torchrun, or `init_process_group`); without that there is one process and nothing happens here.
Gradients are summed after the backward pass and not during it (as DistributedDataParallel does), so that a process which runs
out of memory and computes its share again in smaller parts keeps no other waiting in the middle of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Rows = dict[str, Tensor]  # tensors that have one row a picture

_BUCKET = 16 << 20  # numbers that are summed at once: few messages, little memory


def join(device: torch.device, **group: Any) -> None:
    """Join the process group that `group` names to torch, or the environment as torchrun sets it, to compute on a device.

    NCCL is told the GPU, which it would guess at the first barrier from what the process has used so far.
    """
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo", device_id=device if gpu else None, **group)


@dataclass(frozen=True)
class World:
    """This process among those that train together; `rank` counts from 0."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """The process group that this process is in, alone where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def share(self, rows: Rows) -> Rows:
        """This process's part of a batch, sizes differing by one at most; it may be empty."""
        if self.size == 1:
            return rows
        return {name: tensor.tensor_split(self.size)[self.rank] for name, tensor in rows.items()}

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the processes."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sums over the processes, the same bits in each."""
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # an empty share
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in trained if parameter.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, total in zip(bucket, torch.split(flat, [each.numel() for each in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(each.numel() for each in bucket) >= _BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
