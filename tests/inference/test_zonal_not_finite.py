"""Logits that are not finite: no class, counted, an error when there are many; values are looked at before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import xarray as xr

from flairhub.errors import ZoneError
from flairhub.inference import Style, predict_block, predict_zone, run_zonal, write_zone
from flairhub.inference.values import compare_values
from flairhub.modalities import MODALITIES
from flairhub.models import load_model, save_bundle
from flairhub.prepare import ImagePreparation
from tests.helpers.bundle_makers import make_bundle, write_zonal_config
from tests.helpers.commands import failure, run_command
from tests.helpers.zone_makers import FakeModel, FakeOutput, SmallField, fake_model, make_zone, write_raster

INPUTS = {"AERIAL_RGBI": ImagePreparation()}


class Holed(SmallField):
    """Gives one class of some pixels no number, wherever their first channel is 101."""

    number = torch.nan

    def forward(self, inputs: Any, *arguments: Any, **options: Any) -> FakeOutput:
        logits = super().forward(inputs, *arguments, **options).logits
        holes = inputs["AERIAL_RGBI"][:, :1] == 101
        for values in logits.values():
            values[:, 3:4][holes] = self.number
        return FakeOutput(logits)


def holed(tmp_path: Path, holes: list[tuple[int, int]], number: float) -> tuple[Any, FakeModel]:
    made = make_zone(tmp_path / "zone", 96, 80, {"AERIAL_RGBI": 1})
    values = made.arrays["AERIAL_RGBI"].copy()
    for row, col in holes:
        values[0, row, col] = 101
    write_raster(made.folder / "AERIAL_RGBI.tif", values, 0.2)
    model = fake_model(INPUTS)
    network = Holed({"AERIAL_RGBI": 4}, model.network.tasks)  # type: ignore[arg-type]
    network.number = number  # type: ignore[assignment]
    return made.open(32, 4), FakeModel(network.eval(), model.preparations, model.tasks)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("style", [Style(), Style(blend=True), Style(flips=True)], ids=["crop", "blend", "flips"])
def test_few_pixels_without_numbers_have_no_data_and_are_counted(tmp_path: Path, number: float, style: Style) -> None:
    holes = [(5, 6), (40, 70), (41, 70)]
    zone, model = holed(tmp_path, holes, number)
    outputs = ("class", "confidence", "probabilities", "scaled")
    maps = predict_zone(zone, model, outputs=outputs, block_px=200, style=style).compute()
    expected = np.zeros((96, 80), dtype=bool)
    expected[tuple(np.transpose(holes))] = True
    np.testing.assert_array_equal(maps["class"].values == 255, expected)
    np.testing.assert_array_equal(np.isnan(maps["confidence"].values), expected)
    np.testing.assert_array_equal(np.isnan(maps["probabilities"].values), np.broadcast_to(expected, (19, 96, 80)))
    np.testing.assert_array_equal((maps["scaled"].values == 0).all(axis=0), expected)
    result = write_zone(zone, model, tmp_path / "out", "map", block_px=40, style=style)
    assert result.not_finite == {"AERIAL_LABEL-COSIA": 3}
    assert result.nodata_share == 0
    with rasterio.open(result.maps[0].path) as dataset:
        np.testing.assert_array_equal(dataset.read(1), maps["class"].values)


def test_a_coarser_map_leaves_out_what_has_no_numbers(tmp_path: Path) -> None:
    zone, model = holed(tmp_path, [(0, 0), (0, 1), (1, 0), (8, 8)], torch.nan)
    result = write_zone(zone, model, tmp_path / "out", "map", output_px_m=0.4)
    assert result.not_finite == {"AERIAL_LABEL-COSIA": 1}
    with rasterio.open(result.maps[0].path) as dataset:
        # Three of four fine pixels lack numbers in one output pixel, one of four in the other.
        assert np.argwhere(dataset.read(1) == 255).tolist() == [[0, 0]]


def test_too_many_are_an_error_on_every_way_to_a_map(tmp_path: Path) -> None:
    zone, model = holed(tmp_path, [(row, 7) for row in range(8)], torch.nan)
    message = "AERIAL_LABEL-COSIA: the network gives no finite numbers for 8 of "
    with pytest.raises(ZoneError, match=message + r"7680 pixels with data \(0.1%"):
        predict_zone(zone, model, block_px=200)["class"].compute()
    template = zone.template(model, block_px=48)
    with pytest.raises(ZoneError, match=message):
        xr.map_blocks(predict_block, template, args=[zone, model], template=template).compute()
    with pytest.raises(ZoneError, match=message):
        write_zone(zone, model, tmp_path / "out", "map", block_px=48)
    assert not list((tmp_path / "out").glob("*.tif"))


def test_weights_without_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_zone(tmp_path / "zone", 64, 64, {"AERIAL_RGBI": 1})
    model = load_model(make_bundle(tmp_path / "good", INPUTS))
    with torch.no_grad():
        for weights in model.network.parameters():
            weights.fill_(torch.nan)
    bundle = save_bundle(
        tmp_path / "nan",
        model.network,
        preparations=INPUTS,
        tasks=model.tasks,
        ref_date="05-15",
        bands={"AERIAL_RGBI": MODALITIES["AERIAL_RGBI"].bands},
    )
    path = write_zonal_config(tmp_path / "zonal.yaml", made, bundle)
    code, told = failure(capsys, "zonal", "--config", path)
    assert code == 1
    assert "no finite numbers for 4096 of 4096 pixels with data (100.0%" in told
    assert not list((tmp_path / "out").glob("*.tif"))


def test_zonal_refuses_what_check_calls_trouble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_zone(tmp_path / "zone", 64, 64, {"AERIAL_RGBI": 1, "DEM_ELEV": 1})
    heights = made.arrays["DEM_ELEV"].copy()
    heights[:, :32, :32] = np.finfo(np.float32).min
    write_raster(made.folder / "DEM_ELEV.tif", heights, 0.2)
    preparations = INPUTS | {
        "DEM_ELEV": ImagePreparation(None, "dsm_ndsm", "custom", (300.0, 0.0), (100.0, 10.0)),
    }
    path = write_zonal_config(tmp_path / "zonal.yaml", made, make_bundle(tmp_path / "bundle", preparations))
    message = "has heights from -3.40282e+38 to 99 where it says that there is data"
    code, printed, _ = run_command(capsys, "check", path)
    assert code == 1
    assert message in printed
    code, told = failure(capsys, "zonal", "--config", path)
    assert code == 1
    assert message in told
    assert "-a_nodata -3.40282347e+38 FILE" in told
    assert "--no-check" in told
    assert not (tmp_path / "out").exists()
    with rasterio.open(made.folder / "DEM_ELEV.tif", "r+") as dataset:
        dataset.nodata = float(np.finfo(np.float32).min)
    result = run_zonal(path)
    assert result.not_finite == {"AERIAL_LABEL-COSIA": 0}
    assert result.nodata_share == 0.25


def test_no_check_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_zone(tmp_path / "zone", 64, 64, {"AERIAL_RGBI": 1})
    far = ImagePreparation((1, 2, 3), None, "custom", (900.0, 900.0, 900.0), (10.0, 10.0, 10.0))
    path = write_zonal_config(tmp_path / "zonal.yaml", made, make_bundle(tmp_path / "bundle", {"AERIAL_RGBI": far}))
    assert "8-bit instead of 16-bit" in failure(capsys, "zonal", "--config", path)[1]
    assert run_command(capsys, "zonal", "--config", path, "--no-check")[0] == 0
    assert (tmp_path / "out/map_AERIAL_LABEL-COSIA_argmax.tif").exists()


def test_means_of_huge_numbers_are_not_lost() -> None:
    statistics = ImagePreparation(None, None, "custom", (100.0,), (10.0,))
    values = np.full((1, 5000), 100.0, np.float32)
    values[0, :2500] = -3e37
    ((level, text),) = compare_values(values, statistics, "DEM")
    assert level == "trouble"
    assert "-1.5e+37" in text
