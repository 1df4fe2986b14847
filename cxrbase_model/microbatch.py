"""A batch in as many parts as memory asks for: gradients add up to the whole batch's, whatever the parts."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cxrbase_model.parallel import Rows

log = logging.getLogger("cxrbase.model")


class MicroBatches:
    """Forward and backward over a batch, in parts of `size` pictures (all at once where None); `costs_of` rows are their costs.

    Out of memory halves the size for good and computes the batch anew; at one picture it is raised.
    """

    def __init__(
        self, model: nn.Module, costs_of: Callable[[Rows], Tensor], device: torch.device, size: int | None
    ) -> None:
        self.size = size
        self._model, self._costs_of, self._device = model, costs_of, device

    def backward(self, rows: Rows, total: Tensor) -> Tensor:
        """The gradients of the quotient of the sum of the costs over the batch and `total`, a number on the CPU; returns the
        quotient, on the device.
        """
        count = len(next(iter(rows.values())))
        while True:
            size = min(count, self.size or count)
            self._model.zero_grad(set_to_none=True)
            try:
                return self._attempt(rows, total, count, size)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if size <= 1 or not _is_out_of_memory(error):
                    raise
            self.size = -(-size // 2)
            log.warning("out of memory with %d pictures at a time, going on with %d", size, self.size)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _attempt(self, rows: Rows, total: Tensor, count: int, size: int) -> Tensor:
        loss = torch.zeros((), device=self._device)
        for start in range(0, count, max(1, size)):
            part = {name: moved(tensor[start : start + size], self._device) for name, tensor in rows.items()}
            share = self._costs_of(part).sum() / total
            share.backward()  # type: ignore[no-untyped-call]  # torch's own signature has no types
            loss += share.detach()
        return loss


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; from pinned memory, so that the processor need not wait for the copy."""
    if device.type != "cpu" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


_SCARCE = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


def _is_out_of_memory(error: RuntimeError) -> bool:
    """On the CPU torch says so in words only, and so do the libraries of a GPU that want memory beside torch's."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _SCARCE)
