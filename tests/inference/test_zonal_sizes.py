"""Maps of any size, window, margin, block and batch."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flairhub.config import load_zonal_config
from flairhub.errors import ConfigError
from flairhub.inference import Style, open_zone, predict_zone
from flairhub.inference.map_plan import map_sizes, plan_axes
from flairhub.inference.window_outputs import window_outputs
from flairhub.modalities import MODALITIES
from flairhub.prepare import ImagePreparation
from tests.helpers.pipelines import ZONES
from tests.helpers.zone_makers import fake_model, make_zone, whole_area_map


@pytest.mark.parametrize("name", ["lc_a", "lc_l"])
def test_published_configurations_open_a_zone_of_published_pixels(tmp_path: Path, name: str) -> None:
    """512 px windows with a margin of 128 px at 0.2 m: as they are, or the error names the two nearest windows."""
    config = load_zonal_config(ZONES[name])
    ratios = {one: Fraction(MODALITIES[one].gsd_m / 0.2).limit_denominator(5) for one in config.modalities.active}
    made = make_zone(tmp_path, 1024, 768, ratios, quality=True)
    paths = {f"modalities.{one.name}.input_img_path": one.path for one in made.requests}
    paths |= {f"modalities.{one.name}.dates_txt": one.dates_path for one in made.requests if one.dates_path}
    paths |= {
        f"modalities.{one.name}.filter_clouds_img_path": one.quality_path for one in made.requests if one.quality_path
    }
    placed = [f"{key}={value}" for key, value in paths.items()]
    zone = open_zone(load_zonal_config(ZONES[name], placed))
    sizes = map_sizes(zone)
    rows, cols = plan_axes(zone, sizes)
    lattice = 256 if name == "lc_l" else 1
    assert (sizes.window_px, sizes.margin_px, zone.lattice_px, sizes.output_px_m) == (512, 128, lattice, 0.2)
    assert (rows.step, rows.crop) == (256, 128)
    assert (rows.count, cols.count) == ((5, 4) if name == "lc_l" else (4, 3))
    if name == "lc_l":
        for wrong, message in ((500, "Use 256 or 512"), (600, "Use 512 or 768")):
            with pytest.raises(ConfigError, match=f"{wrong} px hold no whole number .*multiples of 256 px. {message}"):
                open_zone(load_zonal_config(ZONES["lc_l"], [*placed, f"img_pixels_detection={wrong}"]))


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_sizes_blocks_and_batches(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Cropped and blended: the same bits for every block size and batch; cropped, one pass over the whole area."""
    height, width = data.draw(st.integers(1, 12)) * 4, data.draw(st.integers(1, 12)) * 4
    window = data.draw(st.integers(2, 12)) * 4
    margin = data.draw(st.integers(0, (window - 4) // 2))
    style = Style(blend=data.draw(st.booleans()))
    made = make_zone(tmp_path_factory.mktemp("any"), height, width, {"AERIAL_RGBI": 1, "SPOT_RGBI": 4})
    model, zone = (
        fake_model({"AERIAL_RGBI": ImagePreparation(), "SPOT_RGBI": ImagePreparation()}),
        made.open(window, margin),
    )

    def mapped(block_px: int, batch_size: int) -> np.ndarray:
        lazy = predict_zone(
            zone, model, block_px=block_px, batch_size=batch_size, outputs=("probabilities",), style=style
        )
        return lazy["probabilities"].values

    whole = mapped(1000, 1)
    assert np.isfinite(whole).all()
    again = mapped(data.draw(st.integers(1, 50)), data.draw(st.integers(1, 9)))
    assert again.tobytes() == whole.tobytes()
    if margin >= 4 and not style.blend:
        np.testing.assert_array_equal(whole.argmax(axis=0), whole_area_map(made, zone, model))


def test_batches_of_one_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the last batch of every block is filled up, the map stays the same."""
    made = make_zone(tmp_path, 100, 76, {"AERIAL_RGBI": 1})
    zone, model = made.open(32, 4), fake_model({"AERIAL_RGBI": ImagePreparation()})
    expected = whole_area_map(made, zone, model)
    shapes: set[int] = set()

    def counted(network: Any, batch: Any, *arguments: Any) -> Any:
        shapes.add(len(batch.inputs["AERIAL_RGBI"]))
        return window_outputs(network, batch, *arguments)

    monkeypatch.setattr("flairhub.inference.block.window_outputs", counted)
    for style in (Style(), Style(blend=True)):
        shapes.clear()
        ragged = predict_zone(zone, model, block_px=60, batch_size=4, style=style)["class"].values
        assert len(shapes) > 1
        with monkeypatch.context() as patch:
            patch.setattr("flairhub.inference.block.wants_one_shape", lambda device: True)
            shapes.clear()
            found = predict_zone(zone, model, block_px=60, batch_size=4, style=style)["class"].values
        assert shapes == {4}
        np.testing.assert_array_equal(found, ragged)
        if not style.blend:
            np.testing.assert_array_equal(found, expected)
