"""Network and weights: encoders, fusion, heads, bundles, published weights."""

from __future__ import annotations

from flairhub.config import SeriesOptions
from flairhub.models.bundle import MANIFEST, Model, bundle_spec, load_model, read_manifest, save_bundle
from flairhub.models.convert import convert
from flairhub.models.network import Network, Output
from flairhub.models.network_spec import NetworkSpec, network_spec
from flairhub.models.pretrained import build_network
from flairhub.models.published import Accounting, load_into, load_published, read_published
from flairhub.models.sizes import Part, matching_row, network_parts, published_spec, published_total, weights_parts
from flairhub.models.weights_files import read_pickled

__all__ = [
    "MANIFEST",
    "Accounting",
    "Model",
    "Network",
    "NetworkSpec",
    "Output",
    "Part",
    "SeriesOptions",
    "build_network",
    "bundle_spec",
    "convert",
    "load_into",
    "load_model",
    "load_published",
    "matching_row",
    "network_parts",
    "network_spec",
    "published_spec",
    "published_total",
    "read_manifest",
    "read_pickled",
    "read_published",
    "save_bundle",
    "weights_parts",
]
