"""Symmetries: the eight of the square, the same for everything of a patch, independent of batching."""

import numpy as np
import pytest
import torch

from flairhub.data import Batch, Photometric, apply_dihedral, dihedral_codes, prepare_batch
from flairhub.errors import UsageError
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import SeriesPreparation


def test_eight_different_symmetries() -> None:
    square = torch.arange(9.0).view(1, 1, 3, 3).expand(8, 1, 3, 3)
    turned = apply_dihedral(square, torch.arange(8))
    found = {tuple(patch.flatten().tolist()) for patch in turned}
    base = np.arange(9.0).reshape(3, 3)
    expected = {
        tuple(np.rot90(flipped, turns).ravel().tolist()) for flipped in (base, base[:, ::-1]) for turns in range(4)
    }
    assert found == expected


def test_codes_belong_to_patches_not_to_batches() -> None:
    index = np.arange(1000)
    codes = dihedral_codes(index, seed=7, epoch=2)
    parts = torch.cat([dihedral_codes(part, 7, 2) for part in np.array_split(index[::-1], 13)])
    assert torch.equal(parts.flip(0), codes)
    counts = torch.bincount(codes, minlength=8)
    assert counts.min() > 80
    assert not torch.equal(codes, dihedral_codes(index, 7, 3))
    assert not torch.equal(codes, dihedral_codes(index, 8, 2))


def coordinate_batch(n: int) -> Batch:
    """Inputs whose values say where they are on the ground: 4 px and 8 px grids over one footprint."""

    def grid(size: int) -> torch.Tensor:
        centres = (torch.arange(size) + 0.5) / size
        return torch.stack([centres.view(-1, 1).expand(size, size), centres.view(1, -1).expand(size, size)])

    fine, coarse = grid(8).expand(n, 2, 8, 8), grid(4).expand(n, 3, 2, 4, 4)
    target = (grid(8)[0] * 8).to(torch.uint8) * 8 + (grid(8)[1] * 8).to(torch.uint8)
    return Batch(
        inputs={"AERIAL_RGBI": fine.clone(), "SENTINEL2_TS": coarse.clone()},
        dates={"SENTINEL2_TS": torch.zeros(n, 3, dtype=torch.int32)},
        masks={"SENTINEL2_TS": torch.ones(n, 3, dtype=torch.bool)},
        targets={"AERIAL_LABEL-COSIA": target.expand(n, 8, 8).clone()},
        index=torch.arange(n),
    )


def test_images_series_and_labels_stay_aligned() -> None:
    batch = coordinate_batch(8)
    preparations = {"AERIAL_RGBI": ImagePreparation(), "SENTINEL2_TS": SeriesPreparation()}
    prepared = prepare_batch(batch, preparations, "cpu", torch.arange(8))
    image, series = prepared.inputs["AERIAL_RGBI"], prepared.inputs["SENTINEL2_TS"]
    target = prepared.targets["AERIAL_LABEL-COSIA"]
    for patch in range(8):
        # The label says where each pixel came from; the image must say the same.
        assert torch.allclose(image[patch, 0], (target[patch] // 8 + 0.5) / 8)
        assert torch.allclose(image[patch, 1], (target[patch] % 8 + 0.5) / 8)
        # A coarse pixel lies in the middle of its 2 x 2 fine ones.
        middle = image[patch].view(2, 4, 2, 4, 2).mean(dim=(2, 4))
        for date in range(3):
            assert torch.allclose(series[patch, date], middle)
    assert torch.equal(batch.inputs["AERIAL_RGBI"], coordinate_batch(8).inputs["AERIAL_RGBI"])


def test_patches_that_are_not_square_are_refused() -> None:
    with pytest.raises(UsageError, match="2 x 3 px"):
        apply_dihedral(torch.zeros(1, 1, 2, 3), torch.zeros(1, dtype=torch.int64))


def test_photometric_changes_follow_the_formula_and_belong_to_patches() -> None:
    values = torch.from_numpy(np.random.default_rng(1).normal(3, 2, (40, 3, 8, 8)).astype(np.float32))
    index = np.arange(100, 140)
    both = Photometric(brightness=0.2, contrast=0.3, seed=5, epoch=2)
    changed = both.apply(values, "AERIAL_RGBI", index)
    mean, deviation = values.mean(dim=(1, 2, 3)), values.std(dim=(1, 2, 3), correction=0)
    stretch = changed.std(dim=(1, 2, 3), correction=0) / deviation
    shift = (changed.mean(dim=(1, 2, 3)) - mean) / deviation
    assert 0.7 <= stretch.min() < 0.8
    assert 1.2 < stretch.max() <= 1.3
    assert -0.2 <= shift.min() < -0.12
    assert 0.12 < shift.max() <= 0.2
    rebuilt = (values - mean.view(-1, 1, 1, 1)) * stretch.view(-1, 1, 1, 1) + (mean + shift * deviation).view(
        -1, 1, 1, 1
    )
    assert torch.allclose(changed, rebuilt, atol=1e-4)
    parts = [both.apply(values[i : i + 7], "AERIAL_RGBI", index[i : i + 7]) for i in range(0, 40, 7)]
    assert torch.allclose(torch.cat(parts), changed, atol=1e-4)
    assert not torch.allclose(both.apply(values, "SPOT_RGBI", index), changed)
    assert torch.equal(
        Photometric(0, 0, 5, 2).apply(values, "AERIAL_RGBI", index),
        mean.view(-1, 1, 1, 1) + (values - mean.view(-1, 1, 1, 1)),
    )


def test_photometric_changes_leave_series_heights_and_labels() -> None:
    batch = coordinate_batch(4)
    batch.inputs["DEM_ELEV"] = batch.inputs["AERIAL_RGBI"] * 7
    preparations = {
        "AERIAL_RGBI": ImagePreparation(),
        "DEM_ELEV": ImagePreparation(elevation="dsm_dtm"),
        "SENTINEL2_TS": SeriesPreparation(),
    }
    plain = prepare_batch(batch, preparations, "cpu")
    changed = prepare_batch(batch, preparations, "cpu", photometric=Photometric(0.5, 0.5, 0, 0))
    assert not torch.allclose(changed.inputs["AERIAL_RGBI"], plain.inputs["AERIAL_RGBI"])
    for name in ("DEM_ELEV", "SENTINEL2_TS"):
        assert torch.equal(changed.inputs[name], plain.inputs[name])
    assert torch.equal(changed.targets["AERIAL_LABEL-COSIA"], plain.targets["AERIAL_LABEL-COSIA"])
