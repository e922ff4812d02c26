"""Making a network from its description."""

from __future__ import annotations

from pathlib import Path

from flairhub.models.network import Network
from flairhub.models.spec import NetworkSpec


def build_network(spec: NetworkSpec, pretrained: bool | str | Path = False) -> Network:
    """Build a network with random weights, or with pretrained image encoders.

    Args:
        spec: What to build.
        pretrained: False: random weights, never any access to the network. True: ImageNet weights of the image
            encoders through smp or timm, from the hub or its cache. A path: a local file of encoder weights.

    Raises:
        UsageError: The architecture does not exist.
        WeightsError: Pretrained weights cannot be had.
    """
    network = Network(spec)
    if pretrained and spec.images:
        from flairhub.models.pretrained import load_pretrained

        load_pretrained(network, None if pretrained is True else Path(pretrained))
    return network
