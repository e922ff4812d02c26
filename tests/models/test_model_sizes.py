"""Parameters per part and the published size column."""

from __future__ import annotations

import pytest

from flairhub.baselines import BASELINES, Baseline
from flairhub.models import Network, network_parts, published_total
from flairhub.models.sizes import matching_row, published_spec
from tests.helpers.model_makers import make_spec

# Millions, two decimals, as measured on the published code.
MILLIONS = {
    "LC-A": 89.42,
    "LC-B": 181.39,
    "LC-C": 270.63,
    "LC-D": 93.88,
    "LC-E": 95.79,
    "LC-F": 97.70,
    "LC-G": 0.92,
    "LC-H": 1.84,
    "LC-I": 89.25,
    "LC-J": 89.42,
    "LC-K": 181.37,
    "LC-L": 276.37,
    "LC-ALL": 365.76,
    "LPIS-A": 89.42,
    "LPIS-B": 181.21,
    "LPIS-C": 93.89,
    "LPIS-D": 97.71,
    "LPIS-E": 183.13,
    "LPIS-F": 0.93,
    "LPIS-G": 1.84,
    "LPIS-H": 2.77,
    "LPIS-I": 97.54,
    "LPIS-J": 186.96,
    "LPIS-K": 89.25,
}


@pytest.mark.parametrize("row", BASELINES, ids=lambda row: row.name)
def test_published_sizes_come_out(row: Baseline) -> None:
    total = published_total(network_parts(published_spec(row))) / 1e6
    assert abs(total - row.millions) < 0.1
    assert abs(total - MILLIONS[row.name]) < 0.011


def test_there_are_24_rows() -> None:
    assert [row.name for row in BASELINES] == list(MILLIONS)


def test_parts_add_up_to_the_network() -> None:
    spec = make_spec("AERIAL_RGBI", "SENTINEL2_TS", aux=("AERIAL_RGBI", "SENTINEL2_TS"))
    parts = network_parts(spec)
    network = Network(spec)
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in network.parameters())
    fusion = sum(p.numel() for p in network.fusion_handler.parameters())
    assert published_total(parts) == sum(p.numel() for p in network.parameters()) - fusion
    assert [(part.role, part.modality) for part in parts][:3] == [
        ("encoder", "AERIAL_RGBI"),
        ("encoder", "SENTINEL2_TS"),
        ("fusion", ""),
    ]
    assert len(parts) == 3 + 2 + 4


def test_a_published_network_is_recognised() -> None:
    assert [matching_row(published_spec(row)).name for row in BASELINES] == list(MILLIONS)
    assert matching_row(make_spec("AERIAL_RGBI")) is None
