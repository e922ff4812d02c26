"""What a map in xarray can do: the accessors `maps.flairhub` and `maps["class"].flairhub`."""

from flairhub.maps.accessor import MapAccessor, MapsAccessor, accessor_of
from flairhub.maps.class_map import ClassMap, class_map
from flairhub.maps.comparison import Comparison

__all__ = ["ClassMap", "Comparison", "MapAccessor", "MapsAccessor", "accessor_of", "class_map"]
