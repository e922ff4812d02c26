"""Networks, batches and golden cases for the tests of `flairhub.models`."""

from __future__ import annotations

import gzip
import importlib.util
import json
import zlib
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flairhub.modalities import INPUTS, modality
from flairhub.models import Network, NetworkSpec, SeriesOptions
from flairhub.models.encoders import ImageEncoder

GOLDEN = Path(__file__).parents[1] / "golden"
CHANNELS = dict(zip(INPUTS, (3, 1, 2, 3, 10, 2, 2), strict=True))
CLASSES = {"AERIAL_LABEL-COSIA": 19, "ALL_LABEL-LPIS": 23}
LC, LPIS = CLASSES
GOLDEN_DATES = {"SENTINEL2_TS": 7, "SENTINEL1-ASC_TS": 5, "SENTINEL1-DESC_TS": 4}
SMALL_SERIES = SeriesOptions(encoder_widths=(16, 16), decoder_widths=(16, 16), out_conv=(16, 19), n_head=4, d_model=16)
TINY_ARCH = "test_resnet-upernet"

cached_encoder = lru_cache(maxsize=None)(ImageEncoder)
"""Image encoders shared between networks of one test run, which never train them."""


def generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def golden_value(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value that a published tensor has in the golden cases."""
    x = generator(name).standard_normal(shape).astype(np.float32)
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        x = 1 + 0.5 * np.abs(x)
    elif last in ("running_mean", "bias", "relative_position_bias_table"):
        x = 0.1 * x
    elif x.ndim <= 1:
        x = 1 + 0.1 * x
    else:
        x = x / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


@lru_cache(maxsize=1)
def golden_cases() -> dict[str, dict[str, Any]]:
    with gzip.open(GOLDEN / "models.json.gz", "rt") as file:
        return {case["name"]: case for case in json.load(file)}


def golden_state(case: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors of a published file; integer ones are counters."""
    return {
        name: torch.tensor(0) if name.endswith("num_batches_tracked") else golden_value(name, tuple(shape))
        for name, shape in case["state_dict"].items()
    }


def golden_spec(case: dict[str, Any]) -> NetworkSpec:
    return NetworkSpec(
        {name: CHANNELS[name] for name in case["inputs"]},
        {label: CLASSES[label] for label in case["labels"]},
        case["arch"],
        aux=tuple(case["aux"]),
    )


def golden_batch(case: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Inputs, dates and masks; sample 1 ends with two padded dates."""
    inputs, dates, masks = {}, {}, {}
    for name in case["inputs"]:
        size, key = case["input_sizes"][name], name + case["tag"]
        shape = (2, CHANNELS[name], size, size)
        if name not in GOLDEN_DATES:
            inputs[name] = torch.from_numpy(generator("input." + key).standard_normal(shape).astype(np.float32))
            continue
        time = GOLDEN_DATES[name]
        shape = (2, time, *shape[1:])
        x = torch.from_numpy(generator("input." + key).standard_normal(shape).astype(np.float32))
        days = torch.from_numpy(np.sort(generator("dates." + key).integers(-134, 231, (2, time)), axis=1))
        mask = torch.ones(2, time, dtype=torch.bool)
        mask[1, -2:] = False
        x[1, -2:], days[1, -2:] = 0, 0
        inputs[name], dates[name], masks[name] = x, days, mask
    return inputs, dates, masks


def make_spec(*names: str, arch: str = TINY_ARCH, tasks: dict[str, int] | None = None, **options: Any) -> NetworkSpec:
    """A small network of some inputs, both tasks unless given."""
    inputs = {name: CHANNELS[name] for name in names}
    options = {"series": SMALL_SERIES, **options}
    return NetworkSpec(inputs, tasks or CLASSES, arch, **options)


def make_network(*names: str, **options: Any) -> Network:
    return Network(make_spec(*names, **options)).eval()


def make_batch(
    spec: NetworkSpec, batch: int = 2, image: int = 64, series: int = 6, time: int = 4
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random inputs and dates; SPOT at a quarter and PAN at half the size of the other images."""
    inputs, dates = {}, {}
    divisors = {"SPOT_RGBI": 4, "AERIAL-RLT_PAN": 2}
    for name, channels in spec.inputs.items():
        if modality(name).is_series:
            inputs[name] = torch.randn(batch, time, channels, series, series)
            dates[name] = torch.randint(-134, 231, (batch, time))
        else:
            size = image // divisors.get(name, 1)
            inputs[name] = torch.randn(batch, channels, size, size)
    return inputs, dates


EXACT = {"rtol": 1e-9, "atol": 1e-9}
"""Of logits in float64, where two ways to compute the same differ by some 1e-14 on any processor."""


def in_double(network: Network, inputs: dict[str, Tensor]) -> tuple[Network, dict[str, Tensor]]:
    """Network and inputs in float64."""
    return network.double(), {name: values.double() for name, values in inputs.items()}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@lru_cache(maxsize=1)
def paper_module() -> ModuleType:
    """The transcription of the paper's U-TAE from the benchmarks."""
    file = Path(__file__).parents[2] / "benchmarks" / "utae_paper.py"
    spec = importlib.util.spec_from_file_location("utae_paper", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
