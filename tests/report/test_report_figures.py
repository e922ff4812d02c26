"""Figures: what they show, and that files are whole pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from flairhub.class_raster import NO_CLASS_COLOUR, paint
from flairhub.errors import DataError
from flairhub.report import (
    PanelRow,
    clearest_date,
    percentile_limits,
    save_confusion,
    save_curves,
    save_panels,
    save_quicklook,
    stretch,
)
from flairhub.report.charts import needs_decades, row_shares
from flairhub.report.quicklook import nice_length
from flairhub.report.style import class_colormap, class_handles, present_classes
from flairhub.tasks import IGNORE_INDEX, default_task

COSIA = default_task("AERIAL_LABEL-COSIA")


def colours_in(path: Path) -> set[tuple[int, int, int]]:
    """All colours of a PNG."""
    pixels = (imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3)
    return {tuple(colour) for colour in np.unique(pixels, axis=0).tolist()}


def test_paint_uses_the_published_colours_and_grey_for_no_label() -> None:
    painted = paint(np.array([[0, 6], [18, IGNORE_INDEX]]), COSIA)
    assert painted.tolist() == [
        [[0xDB, 0x0E, 0x9A], [0x15, 0x53, 0xAE]],
        [[0, 0, 0], list(NO_CLASS_COLOUR)],
    ]


def test_matplotlib_draws_classes_in_their_colours() -> None:
    colours, norm = class_colormap(COSIA)
    drawn = colours(norm(np.arange(COSIA.n_classes)), bytes=True)[:, :3]
    assert [tuple(colour) for colour in drawn.tolist()] == [row.colour for row in COSIA.classes]


def test_legend_holds_present_classes_only() -> None:
    maps = [np.array([[3, 3], [6, IGNORE_INDEX]]), np.array([[12, 3]])]
    assert present_classes(maps, COSIA) == [3, 6, 12]
    labels = [handle.get_label() for handle in class_handles([2, 3], COSIA, with_ignored=True)]
    assert labels == ["Swimming pool", "Impervious surface", "No label"]


def test_stretch_spans_black_to_white_and_keeps_hues() -> None:
    image = np.array([[[100.0, 200.0]], [[150.0, np.nan]], [[100.0, 300.0]]])
    limits = percentile_limits([image], 0, 100)
    assert limits == (100.0, 300.0)
    assert stretch(image, limits).tolist() == [[[0.0, 0.25, 0.0], [0.5, 1.0, 1.0]]]
    grey = stretch(np.array([[[0.0, 4.0]]]), (0.0, 4.0))
    assert grey.tolist() == [[[0.0] * 3, [1.0] * 3]]
    assert percentile_limits([np.full((1, 2, 2), np.nan)]) == (0.0, 1.0)


def test_clearest_date_prefers_clear_then_summer() -> None:
    dates = np.array(["2020-01-10", "2020-06-20", "2020-07-16", "2020-12-01"], "datetime64[D]")
    mask = np.zeros((4, 2, 2, 2), np.uint8)
    mask[2, 1] = 90
    assert clearest_date(mask, dates) == 1
    assert clearest_date(None, dates) == 2
    assert clearest_date(None, dates, month=1) == 0


def test_row_shares_sum_to_one_where_there_is_truth() -> None:
    shares = row_shares(np.array([[3, 1, 0], [0, 0, 0], [1, 1, 2]]))
    assert shares[0].tolist() == [0.75, 0.25, 0]
    assert np.isnan(shares[1]).all()
    assert shares[2].sum() == 1


@pytest.mark.parametrize(("limit", "expected"), [(205.0, 200.0), (200.0, 200.0), (99.0, 50.0), (1.0, 1.0), (0.7, 0.5)])
def test_scale_bars_have_round_lengths(limit: float, expected: float) -> None:
    assert nice_length(limit) == expected


def test_panels_show_truth_and_prediction_in_class_colours(tmp_path: Path) -> None:
    truth, prediction = np.full((16, 16), 6), np.full((16, 16), 13)
    inputs = {"aerial": np.random.default_rng(0).random((3, 16, 16)), "old": np.zeros((1, 8, 8))}
    rows = [PanelRow("D012-2019_AF-S1-27_5-10", inputs, truth, prediction)] * 2
    path = save_panels(tmp_path / "sub" / "panels.png", rows, COSIA, "Land cover")
    assert path == tmp_path / "sub" / "panels.png"
    assert {COSIA.classes[6].colour, COSIA.classes[13].colour} <= colours_in(path)
    assert COSIA.classes[0].colour not in colours_in(path)


def test_quicklook_shows_every_class_and_nodata(tmp_path: Path) -> None:
    class_map = np.repeat(np.array([0, 6, 8, IGNORE_INDEX], np.uint8), 50).reshape(-1, 1).repeat(300, axis=1)
    path = save_quicklook(tmp_path / "map.png", class_map, COSIA, gsd_m=0.2, title="Zone", image=np.zeros((3, 4, 6)))
    assert {COSIA.classes[c].colour for c in (0, 6, 8)} | {NO_CLASS_COLOUR} <= colours_in(path)


def test_large_maps_are_thinned(tmp_path: Path) -> None:
    class_map = np.zeros((6000, 4000), np.uint8)
    class_map[3000:] = 6
    path = save_quicklook(tmp_path / "map.png", class_map, COSIA, gsd_m=0.2)
    assert max(imread(path).shape[:2]) < 2000
    assert {COSIA.classes[c].colour for c in (0, 6)} <= colours_in(path)


def test_confusion_and_curves_are_written(tmp_path: Path) -> None:
    matrix = np.diag([5, 0, 7, 0]) + np.array([[0, 0, 2, 0], [0] * 4, [0] * 4, [0] * 4])
    first = save_confusion(tmp_path / "confusion.png", matrix, ["a", "b", "c", "d"], "Land cover")
    history = {"train_loss": [2.0, 1.0], "val_loss": [2.5, float("nan")], "val_miou": [0.2, 0.4]}
    second = save_curves(tmp_path / "curves.png", history, "Training")
    for path in (first, second):
        assert imread(path)[..., :3].std() > 0.02


def test_a_first_loss_far_off_does_not_flatten_the_curve(tmp_path: Path) -> None:
    losses = [160.0, 2.0, 1.5, 1.2, 1.1, 1.0]
    assert needs_decades([np.array(losses)])
    assert not needs_decades([np.array(losses[1:]), np.array([np.nan, 3.0])])
    assert not needs_decades([np.array([160.0, 2.0, 0.0, 1.2, 1.1, 1.0])])  # no logarithm of zero
    pixels = imread(save_curves(tmp_path / "curves.png", {"train_loss": losses}))[..., :3]
    drawn = np.flatnonzero((np.abs(pixels - [0x1F / 255, 0x5F / 255, 0xA8 / 255]).max(axis=2) < 0.02).any(axis=0))
    rows = [
        np.flatnonzero(np.abs(pixels[:, x] - [0x1F / 255, 0x5F / 255, 0xA8 / 255]).max(axis=1) < 0.02).mean()
        for x in drawn
    ]
    middle = np.interp(0.5, np.linspace(0, 1, len(rows)), rows)
    assert abs(middle - rows[-1]) > 0.03 * len(pixels)


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one patch"):
        save_panels(tmp_path / "a.png", [], COSIA)
    with pytest.raises(DataError, match="4 classes is square, got shape"):
        save_confusion(tmp_path / "a.png", np.zeros((3, 3)), ["a", "b", "c", "d"])
    with pytest.raises(DataError, match="no pixel"):
        save_confusion(tmp_path / "a.png", np.zeros((2, 2)), ["a", "b"])
    with pytest.raises(DataError, match="no curve"):
        save_curves(tmp_path / "a.png", {})
    with pytest.raises(DataError, match=r"got shape \(3,\)"):
        save_quicklook(tmp_path / "a.png", np.zeros(3), COSIA, gsd_m=1)
    assert list(tmp_path.iterdir()) == []


def test_drawing_changes_no_global_setting(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    save_curves(tmp_path / "curves.png", {"val_miou": [0.1]})
    assert dict(matplotlib.rcParams) == before
