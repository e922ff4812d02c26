"""Pixels without data in training: what the network sees and what it learns from."""

import pytest
import torch

from flairhub.data import Batch, Photometric, prepare_batch
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import SeriesPreparation

AERIAL, DEM, SERIES = "AERIAL_RGBI", "DEM_ELEV", "SENTINEL2_TS"


def image_batch(valid: dict[str, torch.Tensor], present: dict[str, torch.Tensor] | None = None) -> Batch:
    """Two patches of 8 px with labels 0..3, elevation of 4 px and a series of 2 px."""
    inputs = {
        AERIAL: torch.full((2, 4, 8, 8), 30, dtype=torch.uint8),
        DEM: torch.full((2, 2, 4, 4), 7.0),
        SERIES: torch.ones(2, 1, 3, 2, 2),
    }
    labels = torch.arange(2 * 64).reshape(2, 8, 8).remainder(4).to(torch.uint8)
    return Batch(
        inputs,
        {SERIES: torch.zeros(2, 1, dtype=torch.int32)},
        {SERIES: torch.ones(2, 1, dtype=torch.bool)},
        {"LABEL": labels},
        torch.arange(2),
        present or {},
        valid,
    )


PREPARATIONS = {
    AERIAL: ImagePreparation((1, 2), None, "custom", (10.0, 20.0), (2.0, 5.0)),
    DEM: ImagePreparation(elevation="dsm_ndsm"),
    SERIES: SeriesPreparation(),
}


def mask(size: int, *places: tuple[int, int, int]) -> torch.Tensor:
    valid = torch.ones(2, size, size, dtype=torch.bool)
    for place in places:
        valid[place] = False
    return valid


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -9999.0])
def test_pixels_without_data_are_zero_after_normalisation(number: float) -> None:
    batch = image_batch({AERIAL: mask(8, (0, 1, 2)), DEM: mask(4, (1, 3, 0))})
    batch.inputs[AERIAL][0, :, 1, 2] = 255
    batch.inputs[DEM][1, 0, 3, 0] = number
    prepared = prepare_batch(batch, PREPARATIONS, "cpu")
    expected = torch.tensor([10.0, 2.0]).view(1, 2, 1, 1).repeat(2, 1, 8, 8)
    expected[0, :, 1, 2] = 0
    assert torch.equal(prepared.inputs[AERIAL], expected)
    heights = torch.tensor([7.0, 0.0]).view(1, 2, 1, 1).repeat(2, 1, 4, 4)
    heights[1, :, 3, 0] = 0
    assert torch.equal(prepared.inputs[DEM], heights)
    assert torch.equal(prepared.targets["LABEL"], batch.targets["LABEL"])


def test_a_label_pixel_is_ignored_exactly_where_every_input_lacks_it() -> None:
    lacking = {
        AERIAL: mask(8, (0, 2, 2), (0, 2, 3), (0, 7, 7), (1, 0, 0)),
        DEM: mask(4, (0, 1, 1), (1, 0, 0)),
        SERIES: mask(2, (0, 0, 0)),
    }
    batch = image_batch(lacking)
    expected = batch.targets["LABEL"].clone()
    expected[0, 2, 2] = expected[0, 2, 3] = 255
    assert torch.equal(prepare_batch(batch, PREPARATIONS, "cpu").targets["LABEL"], expected)
    for name in lacking:
        rest = {other: valid for other, valid in lacking.items() if other != name}
        batch = image_batch(rest)
        assert prepare_batch(batch, PREPARATIONS, "cpu").targets["LABEL"] is batch.targets["LABEL"]


def test_a_missing_modality_lacks_all_its_pixels() -> None:
    present = {DEM: torch.tensor([False, True]), SERIES: torch.tensor([False, True])}
    batch = image_batch({AERIAL: mask(8, (0, 5, 5), (1, 5, 5))}, present)
    expected = batch.targets["LABEL"].clone()
    expected[0, 5, 5] = 255
    assert torch.equal(prepare_batch(batch, PREPARATIONS, "cpu").targets["LABEL"], expected)


def test_validity_turns_with_the_patch() -> None:
    batch = image_batch({AERIAL: mask(8, (0, 1, 2), (1, 1, 2))}, {DEM: torch.zeros(2) > 0, SERIES: torch.zeros(2) > 0})
    prepared = prepare_batch(batch, PREPARATIONS, "cpu", torch.tensor([0, 1]))
    for patch, row in ((0, 1), (1, 6)):
        assert (~prepared.valid[AERIAL][patch]).nonzero().tolist() == [[row, 2]]
        assert (prepared.targets["LABEL"][patch] == 255).nonzero().tolist() == [[row, 2]]
        assert prepared.inputs[AERIAL][patch, :, row, 2].tolist() == [0, 0]
    assert (~batch.valid[AERIAL][1]).nonzero().tolist() == [[1, 2]]


def test_brightness_is_measured_where_there_is_data() -> None:
    values = torch.randint(0, 255, (2, 4, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    results = []
    for number in (0, 255):
        batch = image_batch({AERIAL: mask(8, *((0, row, 3) for row in range(8)))})
        batch.inputs[AERIAL].copy_(values)
        batch.inputs[AERIAL][0, :, :, 3] = number
        prepared = prepare_batch(batch, PREPARATIONS, "cpu", photometric=Photometric(0.5, 0.5, 0, 0))
        results.append(prepared.inputs[AERIAL])
    assert torch.equal(*results)
    assert not results[0][0, :, :, 3].any()
    whole = image_batch({})
    whole.inputs[AERIAL].copy_(values)
    plain = prepare_batch(whole, PREPARATIONS, "cpu", photometric=Photometric(0.5, 0.5, 0, 0)).inputs[AERIAL]
    torch.testing.assert_close(results[0][1], plain[1])
    assert not torch.allclose(results[0][0], plain[0])
