"""Memory of batches, used again once nobody looks at it any more."""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GRAIN = 1 << 16
"""Buffers are multiples of this many bytes, so that series of similar length share them."""
_LEAST = 1 << 18
"""Smaller buffers come from the allocator, which is fast for them."""
_OTHERS = 2
"""References to a free buffer while it is looked at: the list of the ring and the argument of `getrefcount`."""


class BufferRing:
    """Hands out tensors on reused memory; safe to call from several threads.

    New memory costs a page fault per 4 kB, several times the decoding of what is read into it, and page-locked memory
    costs far more. A buffer is free when no tensor and no array refers to it, so keeping a batch is always safe: it
    only makes the ring grow. `most` bounds what is kept for later, not what can be in use.
    """

    def __init__(self, pin_memory: bool = False, most: int = 64):
        """Start empty.

        Args:
            pin_memory: Page-locked memory, for fast copies to a GPU.
            most: Buffers that are kept.
        """
        self.pin_memory, self._most = pin_memory, most
        self._buffers: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Tensor, NDArray[Any]]:
        """Return a tensor with undefined content and the numpy view of its memory."""
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes < _LEAST and not self.pin_memory:
            values = np.empty(shape, dtype=dtype)
            return torch.from_numpy(values), values
        values = self._free(n_bytes)[:n_bytes].view(dtype).reshape(shape)
        return torch.from_numpy(values), values

    def _free(self, n_bytes: int) -> NDArray[np.uint8]:
        size = -(-max(n_bytes, 1) // _GRAIN) * _GRAIN
        with self._lock:
            for i in range(len(self._buffers)):
                if self._buffers[i].nbytes == size and sys.getrefcount(self._buffers[i]) == _OTHERS:
                    return self._buffers[i]
            buffer = self._new(size)
            if len(self._buffers) >= self._most:
                # The oldest one; whoever uses it keeps it alive.
                del self._buffers[0]
            self._buffers.append(buffer)
            return buffer

    def _new(self, size: int) -> NDArray[np.uint8]:
        if not self.pin_memory:
            return np.empty(size, dtype=np.uint8)
        return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
