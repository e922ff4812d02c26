"""How long a run may take, from operation counts: the network is traced on shapes, never run."""

from __future__ import annotations

import copy
import logging
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from flairhub.inference.block import MapPlan
from flairhub.inference.network import ModelRef, load
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import SeriesPreparation, period_count

log = logging.getLogger(__name__)

_EFFICIENCY = 0.5
"""Share of a matrix product's speed that whole networks reach, roughly."""


def forward_flops(plan: MapPlan, ref: ModelRef) -> float | None:
    """Return floating point operations of one window, or None when the network cannot be traced on shapes."""
    inputs, dates = {}, {}
    for name, preparation in ref.preparations.items():
        source = plan.zone.sources[name]
        side = int(plan.rows.window / source.ratio)
        if isinstance(preparation, SeriesPreparation):
            n_times = period_count(preparation.average) if preparation.average else source.n_dates
            n_channels = len(preparation.channels or range(source.n_bands))
            inputs[name] = torch.zeros(1, n_times, n_channels, side, side, device="meta")
            dates[name] = torch.zeros(1, n_times, dtype=torch.int32, device="meta")
        else:
            assert isinstance(preparation, ImagePreparation)
            inputs[name] = torch.zeros(1, preparation.n_channels(source.n_bands), side, side, device="meta")
    counter = FlopCounterMode(display=False)
    try:
        network = copy.deepcopy(load(ref).network).to("meta")
        with counter, torch.inference_mode():
            network(inputs, dates or None, None, size=(plan.rows.window, plan.cols.window))
    except (RuntimeError, NotImplementedError, ValueError) as error:
        log.info("the time of the run is not estimated: %s", error)
        return None
    return float(counter.get_total_flops())


def machine_flops(device: str) -> float:
    """Measure this machine with a matrix product and return the operations per second a network may reach."""
    size = 4096 if device.startswith("cuda") else 768
    a = torch.ones(size, size, device=device)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - started)
    return _EFFICIENCY * 2 * size**3 / best
