"""Dask-backed sources enter graphs chunk by chunk: each chunk is computed once, and never inside a task."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

import flairhub as fh
from flairhub.errors import DataError, ZoneError
from flairhub.inference import Style, block_jobs, predict_block, predict_zone
from flairhub.jobs.processes import local_client
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import CloudFilter, SeriesPreparation
from flairhub.zones import Zone
from tests.helpers.array_makers import RATIOS, Counting, arrays_of, counted, zone_of
from tests.helpers.bundle_makers import make_bundle
from tests.helpers.zone_makers import X_MIN, Y_MAX, MadeZone, fake_model, make_zone

IMAGES = {"AERIAL_RGBI": ImagePreparation((4, 1, 2)), "SPOT_RGBI": ImagePreparation()}
SERIES = SeriesPreparation(cloud_filter=CloudFilter(max_cloud=60, max_snow=60, max_frac=0.9))
MODEL = fake_model({**IMAGES, "SENTINEL2_TS": SERIES})
SIZES: dict[str, Any] = {"window_px": 32, "margin_px": 4, "block_px": 24}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeZone:
    return make_zone(tmp_path_factory.mktemp("zone"), 72, 96, RATIOS, quality=True)


@pytest.fixture(scope="module")
def expected(made: MadeZone) -> xr.Dataset:
    result = predict_zone(made.open(32, 4), MODEL, outputs=("class", "scaled"), **SIZES).compute()
    assert len(np.unique(result["class"])) > 4
    return result


@pytest.fixture
def no_array_is_computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only graphs are: an array that is computed would be computed inside a task."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed inside a task")

    with monkeypatch.context() as patched:
        patched.setattr(da.Array, "compute", refuse)
        yield


def mapped(zone: Zone, part: Any = lambda template: template, **options: Any) -> xr.Dataset:
    template = part(zone.template(MODEL, **{"outputs": ("class", "scaled"), **SIZES, **options}))
    return xr.map_blocks(fh.predict_block, template, args=[zone, MODEL], template=template)


def lazy(zone: Zone) -> xr.Dataset:
    return predict_zone(zone, MODEL, outputs=("class", "scaled"), **SIZES)


def once(sources: dict[str, Counting]) -> None:
    assert {name: dict(source.counts) for name, source in sources.items()} == {
        name: source.all_once for name, source in sources.items()
    }


@pytest.mark.usefixtures("no_array_is_computed")
@pytest.mark.parametrize("make", [lazy, mapped])
def test_every_source_chunk_is_computed_once(made: MadeZone, expected: xr.Dataset, make: Any, tmp_path: Path) -> None:
    zone, sources = counted(made, tmp_path)
    maps = make(zone)
    assert not any(source.counts for source in sources.values())
    xr.testing.assert_equal(maps.compute(), expected)
    once(sources)


@pytest.mark.usefixtures("no_array_is_computed")
@pytest.mark.parametrize("make", [lazy, mapped])
def test_a_slice_computes_only_the_chunks_that_its_windows_touch(
    made: MadeZone, expected: xr.Dataset, make: Any, tmp_path: Path
) -> None:
    zone, sources = counted(made, tmp_path)
    MODEL.network.samples = 0
    part = make(zone)["class"].sel(x=slice(X_MIN, X_MIN + 2), y=slice(Y_MAX, Y_MAX - 2))
    assert part.rio.crs.to_epsg() == 2154
    xr.testing.assert_equal(part.compute(), expected["class"][:10, :10])
    assert MODEL.network.samples == 1, "neither the last block nor any other"
    # The block has one window: 28 px, mirrored at the edge.
    assert set(sources["AERIAL_RGBI"].counts) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert set(sources["SENTINEL2_TS"].counts) == {(0, 0)}


PARTS = {
    "rows and columns": lambda maps: maps.isel(y=slice(7, 60), x=slice(30, None)),
    "every third": lambda maps: maps.isel(y=slice(5, None, 3), x=slice(None, None, -1)),
    "picked": lambda maps: maps.isel(x=[3, 50, 51, 90]),
    "chunked otherwise": lambda maps: maps.chunk(y=40, x=33),
    "one chunk": lambda maps: maps.isel(y=slice(20, 50)).chunk(-1),
    "one variable": lambda maps: maps[["scaled"]].isel(y=slice(30, 40)),
    "transposed": lambda maps: maps.transpose("x", ..., "y"),
}


@pytest.mark.usefixtures("no_array_is_computed")
@pytest.mark.parametrize("name", list(PARTS))
def test_any_part_of_a_template_brings_its_sources(
    made: MadeZone, expected: xr.Dataset, name: str, tmp_path: Path
) -> None:
    zone, sources = counted(made, tmp_path)
    maps = mapped(zone, PARTS[name]).compute()
    xr.testing.assert_equal(maps, PARTS[name](expected)[list(maps.data_vars)].compute())
    assert {count for source in sources.values() for count in source.counts.values()} == {1}


@pytest.mark.usefixtures("no_array_is_computed")
@pytest.mark.parametrize(
    "options", [{"style": Style(blend=True)}, {"output_px_m": 0.3}, {"outputs": ("confidence",), "block_px": 10}]
)
def test_other_windows_reach_other_chunks(made: MadeZone, options: dict[str, Any], tmp_path: Path) -> None:
    zone, sources = counted(made, tmp_path)
    whole = predict_zone(made.open(32, 4), MODEL, **{"outputs": ("class", "scaled"), **SIZES, **options})
    xr.testing.assert_equal(mapped(zone, **options).compute(), whole.compute())
    once(sources)


@pytest.mark.usefixtures("no_array_is_computed")
def test_warped_sources_are_edges_too(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 64, 64, {"AERIAL_RGBI": 1, "SPOT_RGBI": 8})
    arrays = arrays_of(made, {"AERIAL_RGBI": 1, "SPOT_RGBI": 8})
    arrays["SPOT_RGBI"] = arrays["SPOT_RGBI"].assign_coords(x=arrays["SPOT_RGBI"].x + 0.3)
    model = fake_model(IMAGES)
    maps = []
    for chunk in (None, 5):
        sources = {name: array if chunk is None else array.chunk(y=chunk, x=chunk) for name, array in arrays.items()}
        zone = fh.zone(sources, align="resample")
        template = zone.template(model, **SIZES)
        maps.append(xr.map_blocks(predict_block, template, args=[zone, model], template=template).compute())
        xr.testing.assert_equal(maps[0], predict_zone(zone, model, **SIZES).compute())
    xr.testing.assert_equal(*maps)


@pytest.mark.usefixtures("no_array_is_computed")
@pytest.mark.parametrize("align", ["strict", "resample"])
def test_a_zone_as_xarray_computes_once(made: MadeZone, align: str, tmp_path: Path) -> None:
    zone, sources = counted(made, tmp_path, align=align)
    tree = zone.to_xarray(chunk_px=20)
    for name, values in made.arrays.items():
        pixels = dask.compute(tree[name]["data"].data)[0]
        np.testing.assert_array_equal(pixels.reshape(values.shape), values)
    once(sources)


def test_a_template_of_another_zone_or_of_other_windows_is_refused(made: MadeZone, tmp_path: Path) -> None:
    zone, _ = counted(made, tmp_path)
    other = zone_of({name: array.chunk(9) for name, array in arrays_of(made).items()})
    template = zone.template(MODEL, **SIZES)
    with pytest.raises(ZoneError, match=r"the template is one of another zone. Give the zone that made it"):
        xr.map_blocks(fh.predict_block, template, args=[other, MODEL], template=template).compute()
    wider = template.assign_attrs(window_px=48, margin_px=16)
    with pytest.raises(ZoneError, match=r"rows .* reach beyond what this block was given. Take a template of these"):
        xr.map_blocks(fh.predict_block, wider, args=[zone, MODEL], template=wider).compute()


def test_pixels_stay_where_they_are_when_a_zone_is_pickled(made: MadeZone) -> None:
    for chunk in (None, 9):
        arrays = {name: array if chunk is None else array.chunk(chunk) for name, array in arrays_of(made).items()}
        zone = zone_of(arrays)
        text = pickle.dumps(zone)
        assert len(text) < 10_000
        with pytest.raises(ZoneError, match=r"AERIAL_RGBI: its pixels are in another process, this one has only its"):
            pickle.loads(text).rasters["AERIAL_RGBI"].read((0, 4), (0, 4))
        template = zone.template(MODEL, **SIZES)
        maps = xr.map_blocks(fh.predict_block, template, args=[pickle.loads(text), MODEL], template=template)
        xr.testing.assert_equal(maps["class"].compute(), lazy(zone)["class"].compute())


def bundle_of(folder: Path) -> Path:
    return make_bundle(folder / "bundle", {name: MODEL.preparations[name] for name in RATIOS})


def test_several_worker_processes(made: MadeZone, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    alone = predict_zone(made.open(32, 4), bundle, **SIZES)["class"].compute()
    with local_client(2):
        for way in ("lazy", "mapped"):
            zone, sources = counted(made, tmp_path / way)
            maps = predict_zone(zone, bundle, **SIZES)
            if way == "mapped":
                template = zone.template(bundle, **SIZES)
                maps = xr.map_blocks(fh.predict_block, template, args=[zone, bundle], template=template)
            xr.testing.assert_equal(maps["class"].compute(), alone)
            once(sources)


@pytest.mark.parametrize(("workers", "scheduler"), [(1, None), (3, "threads"), (2, "processes")])
def test_a_run_computes_every_chunk_once(
    made: MadeZone, tmp_path: Path, workers: int, scheduler: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that wait for their last block do so in files where memory is short; arrays in memory travel likewise."""
    monkeypatch.setattr(block_jobs, "KEPT_BYTES", 5_000)
    bundle = bundle_of(tmp_path)
    zone, sources = counted(made, tmp_path / "counts", in_memory=("SPOT_RGBI",))
    options: dict[str, Any] = {**SIZES, "cog": False, "output_type": "class_prob"}
    done = fh.write_zone(zone, bundle, tmp_path / "a", "map", workers=workers, scheduler=scheduler, **options)
    assert done.n_computed == 20
    once(sources)
    plain = fh.write_zone(made.open(32, 4), bundle, tmp_path / "b", "map", **options)
    assert done.maps[0].path.read_bytes() == plain.maps[0].path.read_bytes()
    assert not list((tmp_path / "a").glob(".*unfinished"))


class Flaky(Counting):
    """Its last chunk cannot be read at first."""

    is_gone = True

    def read(self, block_id: tuple[int, ...] = ()) -> NDArray[Any]:
        if self.is_gone and block_id[-2:] == (2, 3):
            raise OSError("the server is gone")
        return super().read(block_id)


def test_a_run_that_goes_on_computes_only_what_is_left(made: MadeZone, tmp_path: Path) -> None:
    array = arrays_of(made)["AERIAL_RGBI"]
    model = fake_model({"AERIAL_RGBI": IMAGES["AERIAL_RGBI"]})
    source = Flaky(array.values, 24, tmp_path / "counts")
    zone = fh.zone(AERIAL_RGBI=array.copy(data=source.array()))
    options: dict[str, Any] = {"window_px": 24, "margin_px": 0, "block_px": 24}
    with pytest.raises(DataError, match=r"AERIAL_RGBI: cannot read \(OSError: the server is gone\)"):
        fh.write_zone(zone, model, tmp_path / "out", "map", **options)
    assert sum(source.counts.values()) == 11
    source.is_gone = False
    done = fh.write_zone(zone, model, tmp_path / "out", "map", **options)
    assert 1 <= done.n_computed <= 3
    assert source.counts[0, 0] == source.counts[0, 1] == source.counts[2, 3] == 1


def test_arrays_in_memory_are_in_the_graph_once(made: MadeZone) -> None:
    zone = fh.zone(AERIAL_RGBI=arrays_of(made)["AERIAL_RGBI"])
    model = fake_model({"AERIAL_RGBI": IMAGES["AERIAL_RGBI"]})
    n_bytes = made.arrays["AERIAL_RGBI"].nbytes
    maps = predict_zone(zone, model, window_px=32, margin_px=4, block_px=8)
    assert n_bytes < len(pickle.dumps(dict(maps["class"].data.__dask_graph__()))) < 4 * n_bytes
