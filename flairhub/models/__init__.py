"""Network and weights: encoders, fusion, heads, bundles, published weights."""

from __future__ import annotations

from flairhub.config import SeriesOptions
from flairhub.models.bundle import Model, load_model, save_bundle
from flairhub.models.network import Network, Output
from flairhub.models.network_spec import NetworkSpec, network_spec
from flairhub.models.pretrained import build_network
from flairhub.models.published import Accounting, load_into, load_published, read_published
from flairhub.models.sizes import Part, network_parts, published_total
from flairhub.models.weights_files import read_pickled

__all__ = [
    "Accounting",
    "Model",
    "Network",
    "NetworkSpec",
    "Output",
    "Part",
    "SeriesOptions",
    "build_network",
    "load_into",
    "load_model",
    "load_published",
    "network_parts",
    "network_spec",
    "published_total",
    "read_pickled",
    "read_published",
    "save_bundle",
]
