"""Maps of any size, window, margin, block and batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zone_makers import fake_model, make_zone, whole_area_map

from flairhub.inference import Style, predict_zone
from flairhub.inference.forward import window_outputs
from flairhub.prepare import ImagePreparation


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
