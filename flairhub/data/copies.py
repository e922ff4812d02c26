"""Copies of batches to a GPU beside its work."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from flairhub.data.batch import Batch

_streams: dict[torch.device, Any] = {}
_in_flight: deque[tuple[Any, Batch]] = deque()


def moved(batch: Batch, device: torch.device | str) -> Batch:
    """Return a batch on a device.

    On a GPU the copy runs on a stream of its own, so it overlaps with what the GPU still computes, and later work waits
    for it. The source is kept until the copy is done: its page-locked memory would otherwise be read into again.
    """
    target = torch.device(device)
    if target.type != "cuda":
        return batch.to(target)
    while _in_flight and _in_flight[0][0].query():
        _in_flight.popleft()
    stream = _streams.get(target)
    if stream is None:
        stream = _streams[target] = torch.cuda.Stream(target)
    with torch.cuda.stream(stream):
        result = batch.to(target)
        event = stream.record_event()
    _in_flight.append((event, batch))
    current = torch.cuda.current_stream(target)
    current.wait_event(event)
    for group in (result.inputs, result.dates, result.masks, result.targets, result.present, result.valid):
        for tensor in group.values():
            tensor.record_stream(current)
    return result
