"""Network and weights: encoders, fusion, heads, bundles, published weights."""

from __future__ import annotations

from flairhub.models.build import build_network
from flairhub.models.bundle import Model, load_model, save_bundle
from flairhub.models.from_config import network_spec
from flairhub.models.network import Network, Output
from flairhub.models.spec import NetworkSpec, SeriesOptions

__all__ = [
    "Model",
    "Network",
    "NetworkSpec",
    "Output",
    "SeriesOptions",
    "build_network",
    "load_model",
    "network_spec",
    "save_bundle",
]
