"""Registration of `.flairhub` on maps in xarray, without importing xarray or anything that is not needed yet."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

NAME = "flairhub"


def register() -> None:
    """Give DataArray and Dataset the accessor now, or as soon as somebody imports xarray."""
    xarray = sys.modules.get("xarray")
    if xarray is None:
        if not any(isinstance(finder, _AfterXarray) for finder in sys.meta_path):
            sys.meta_path.insert(0, _AfterXarray())
    elif hasattr(xarray, "DataArray") and not hasattr(xarray.DataArray, NAME):
        xarray.register_dataarray_accessor(NAME)(_accessor)
        xarray.register_dataset_accessor(NAME)(_accessor)


def _accessor(maps: Any) -> Any:
    """Methods of class maps: plot, areas, to_cog, to_polygons, compare, names. See `flairhub.maps`."""
    return import_module("flairhub.maps").accessor_of(maps)


class _AfterXarray:
    """Finds xarray as Python itself does, and has the accessor registered once it is loaded.

    The only way that needs neither xarray's second of import time nor a call of ours between `import xarray` and the
    first map. It goes once xarray is there.
    """

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the specification of xarray; None for everything else."""
        spec = PathFinder.find_spec(name, path, target) if name == "xarray" else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            register()

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec
