"""Published weights: names as they are in the wild, every tensor accounted for."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flairhub.errors import UsageError, WeightsError
from flairhub.models.arch import parse_arch
from flairhub.models.bundle import bundle_tensors
from flairhub.models.decoders import UPerNetDecoder
from flairhub.models.encoders import ImageEncoder
from flairhub.models.network import Network
from flairhub.models.network_spec import NetworkSpec
from flairhub.models.weights_files import read_tensors
from flairhub.shown import facts_html, listed

logger = logging.getLogger(__name__)

_ROOTS = ("encoders.", "fusion_handler.", "main_decoders.", "aux_decoders.")
_WRAPPERS = ("model.", "module.", "_orig_mod.")
_POSITION_TABLE = ".relative_position_bias_table"
_COMPUTED_BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")
_STRIDES = (4, 8, 16, 32)
_REINIT = "flairhub model convert WEIGHTS --config CONFIG -o START.bundle --reinit-heads"
"""What makes weights for another number of classes or channels, which training then starts from."""
# The DeepLabV3 decoder was a plain sequence before smp 0.5.
_DEEPLABV3_NAMES = {"decoder.0.": "decoder.aspp.", "decoder.1.": "decoder.conv.", "decoder.2.": "decoder.bn."}


@dataclass(repr=False)
class Accounting:
    """Where every tensor of a file and of a network went.

    Attributes:
        matched: Tensors loaded as they are.
        reshaped: Position tables loaded after a bicubic resize.
        unused: Tensors of the file that take no part in this network, with the reason.
        missing: Tensors of the network that the file lacks.
        unexpected: Tensors of the file that have no place.
        mismatched: (name, shape in the file, shape in the network).
        reinitialised: Tensors of the network left at their initial values on request.
    """

    matched: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    reinitialised: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True when nothing is missing, unexpected or of another shape."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {name}" for name, n in self.counts().items() if n) or "no tensor"
        return f"<Accounting {'complete' if self.complete else 'incomplete'}: {counts}>"

    def _repr_html_(self) -> str:
        kinds = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return facts_html(
            "Accounting", {name: f"{len(all_)}: {listed(list(all_), 3)}" for name, all_ in kinds.items() if all_}
        )

    def counts(self) -> dict[str, int]:
        """Return the number of tensors of each kind."""
        return {name: len(getattr(self, name)) for name in self.__dataclass_fields__}


def load_published(
    path: str | Path,
    spec: NetworkSpec,
    *,
    reinit_heads: bool = False,
    partial: bool = False,
    fit_sizes: bool = True,
) -> Network:
    """Build a network and load published weights into it, strictly.

    See `read_published` for the arguments; the accounting goes to the log.
    """
    network, accounting = read_published(path, spec, reinit_heads=reinit_heads, partial=partial, fit_sizes=fit_sizes)
    logger.info("%s: %s", path, ", ".join(f"{n} {name}" for name, n in accounting.counts().items() if n))
    return network


def read_published(
    path: str | Path,
    spec: NetworkSpec,
    *,
    reinit_heads: bool = False,
    partial: bool = False,
    fit_sizes: bool = True,
) -> tuple[Network, Accounting]:
    """Build a network with the weights of a weights file, one of `WEIGHTS_SUFFIXES`.

    Args:
        path: The file; names may carry a `model.` prefix.
        spec: The network.
        reinit_heads: Leave heads of another number of classes and first convolutions of another number of channels
            at their initial values.
        partial: Accept anything missing, unexpected or of another shape; the accounting tells.
        fit_sizes: Build position tables for the image sizes that the weights were trained at, where they can be
            told from the tables, instead of resizing the tables to `spec.sizes`.

    Raises:
        WeightsError: The file is unusable or does not fit the network; the message accounts for the tensors.
    """
    path = Path(path)
    tensors = read_weights(path)
    spec = _with_other_tasks(spec, tensors)
    if fit_sizes:
        spec = _with_fitting_sizes(spec, tensors)
    network = Network(spec)
    accounting = _assign(network, tensors, reinit_heads)
    if not accounting.complete and not partial:
        raise WeightsError(_explain(path, accounting, spec))
    return network.eval(), accounting


def load_into(network: Network, path: str | Path, *, reinit_heads: bool = False, partial: bool = False) -> Accounting:
    """Load a weights file or a bundle's weights into an existing network, in place.

    Position tables are resized to the network's. Nothing is changed when the weights do not fit.

    Raises:
        WeightsError: As `read_published`.
    """
    path = Path(path)
    tensors = _strip(_read(path), path)
    accounting = _assign(network, tensors, reinit_heads, dry_run=True)
    if not accounting.complete and not partial:
        raise WeightsError(_explain(path, accounting, network.spec))
    return _assign(network, tensors, reinit_heads)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a weights file or a bundle's weights, names without the prefixes of Lightning, DDP and torch.compile."""
    return _strip(_read(path), path)


def _read(path: Path) -> dict[str, Tensor]:
    return bundle_tensors(path) if path.is_dir() else read_tensors(path)


def _strip(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = name
        while not bare.startswith(_ROOTS) and bare.startswith(_WRAPPERS):
            bare = bare.split(".", 1)[1]
        bare = bare if bare.startswith(_ROOTS) else name
        if bare in result:
            raise WeightsError(f"{path}: holds {bare!r} twice, with and without a prefix.")
        result[bare] = tensor
    return result


def _with_other_tasks(spec: NetworkSpec, tensors: Mapping[str, Tensor]) -> NetworkSpec:
    """Count the classes of trained tasks that are not asked for, which widen the logits of series."""
    if spec.images:
        return spec
    others = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"main_decoders\.(.+)\.weight", name)
        if match and match[1] not in spec.tasks:
            others[match[1]] = tensor.shape[0]
    trained = any(f"main_decoders.{task}.weight" in tensors for task in spec.tasks)
    return replace(spec, other_classes=sum(others.values())) if others and trained else spec


def _with_fitting_sizes(spec: NetworkSpec, tensors: Mapping[str, Tensor]) -> NetworkSpec:
    """Take the image sizes for which the encoders' position tables have the shapes in the file."""
    sizes = dict(spec.sizes)
    for image in spec.images:
        prefix = f"encoders.{image}.seg_model."
        tables = {k.removeprefix(prefix): v.shape for k, v in tensors.items() if k.startswith(prefix)}
        tables = {name: shape for name, shape in tables.items() if name.endswith(_POSITION_TABLE)}
        windows = {(isqrt(shape[0]) + 1) // 2 for shape in tables.values()}
        stages = [window * stride for window in windows for stride in _STRIDES]
        candidates = [spec.sizes[image], *sorted(set(stages), reverse=True)]
        for size in candidates if tables else ():
            if _table_shapes(spec, image, size) == tables:
                sizes[image] = size
                break
    return replace(spec, sizes=sizes)


def _table_shapes(spec: NetworkSpec, image: str, size: int) -> dict[str, torch.Size] | None:
    try:
        with torch.device("meta"):
            encoder = ImageEncoder(parse_arch(spec.arch), spec.inputs[image], size).seg_model
    except (UsageError, RuntimeError):
        return None
    return {name: value.shape for name, value in encoder.state_dict().items() if name.endswith(_POSITION_TABLE)}


def _assign(network: Network, tensors: Mapping[str, Tensor], reinit_heads: bool, dry_run: bool = False) -> Accounting:
    target = network.state_dict()
    tensors = _renamed(network, target, tensors)
    accounting = Accounting()
    values: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in target:
            reason = _unused(network, name)
            if reason:
                accounting.unused[name] = reason
            else:
                accounting.unexpected.append(name)
        elif tensor.is_floating_point() != target[name].is_floating_point():
            raise WeightsError(f"{name}: holds {tensor.dtype} numbers, expected {target[name].dtype}: a damaged file?")
        elif tensor.shape == target[name].shape:
            values[name] = tensor
            accounting.matched.append(name)
        elif name.endswith(_POSITION_TABLE) and tensor.shape[1:] == target[name].shape[1:]:
            values[name] = resize_table(tensor, target[name].shape[0])
            accounting.reshaped.append(name)
        elif reinit_heads and _replaceable(name, tensor.shape, target[name].shape):
            accounting.reinitialised.append(name)
        else:
            accounting.mismatched.append((name, tuple(tensor.shape), tuple(target[name].shape)))
    for name in target:
        if name in tensors or name.endswith("num_batches_tracked"):
            continue
        (accounting.reinitialised if reinit_heads and _is_head(name) else accounting.missing).append(name)
    if not dry_run:
        with torch.no_grad():
            for name, value in values.items():
                target[name].copy_(value)
    return accounting


def _renamed(network: Network, target: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of smp 0.4 in the terms of the installed smp."""
    deeplab = network.arch is not None and network.arch.decoder == "deeplabv3"
    flat = {  # encoders that smp 0.5 moved onto timm's own, one level deeper
        f"encoders.{image}.seg_model."
        for image in network.spec.images
        if all(
            name.startswith(f"encoders.{image}.seg_model.model.")
            for name in target
            if name.startswith(f"encoders.{image}.")
        )
    }
    result = {}
    for name, tensor in tensors.items():
        if deeplab and "decoders." in name:
            for old, new in _DEEPLABV3_NAMES.items():
                name = name.replace(f".seg_model.{old}", f".seg_model.{new}")
        for prefix in flat:
            deeper = f"{prefix}model.{name.removeprefix(prefix)}".replace(".stages.", ".stages_")
            if name.startswith(prefix) and name not in target and deeper in target:
                name = deeper
        result[name] = tensor
    return result


def resize_table(table: Tensor, entries: int) -> Tensor:
    """Resize a relative-position table to another window, bicubically.

    Args:
        table: ((2 window - 1)^2, head).
        entries: (2 new window - 1)^2.

    Returns:
        (entries, head).
    """
    side, new_side = isqrt(table.shape[0]), isqrt(entries)
    grid = table.float().t().reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return grid.reshape(-1, entries).t().to(table.dtype)


def _unused(network: Network, name: str) -> str:
    """Why a tensor of the published layout takes no part in this network; empty when it should have a place."""
    spec = network.spec
    if name.startswith("criterion."):
        return "class weights of the loss"
    if re.match(r"fusion_handler\.conv_f\.\d+\.(weight|bias)$", name):
        return "fusion level that is not read"
    if name.split(".")[-1] in _COMPUTED_BUFFERS:
        return "computed by the encoder"
    if match := re.match(r"encoders\.(.+?)\.out_conv\.", name):
        known = match[1] in spec.time_series and not network.needs_series_logits(match[1])
        return "logits of a series that nobody asks for" if known else ""
    match = re.match(r"(main|aux)_decoders\.(?:([^.]+?)__)?([^.]+)\.(.+)$", name)
    if not match:
        return ""
    kind, modality, task, rest = match.groups()
    heads = network.main_decoders if kind == "main" else network.aux_decoders
    key = task if kind == "main" else f"{modality}__{task}"
    if key in heads:
        return "stage of the 1-channel image" if _is_full_resolution_stage(heads[key], rest) else ""
    if kind == "aux":
        return "auxiliary head that the network does not have" if modality in spec.inputs else ""
    if task in spec.tasks:
        return "head of a single task of series" if rest in ("weight", "bias") else ""
    return "task that the network does not predict"


def _is_full_resolution_stage(head: nn.Module, rest: str) -> bool:
    decoder = getattr(getattr(head, "seg_model", None), "decoder", None)
    return isinstance(decoder, UPerNetDecoder) and rest.startswith(
        f"seg_model.decoder.fpn_stages.{len(decoder.fpn_stages)}."
    )


def _is_head(name: str) -> bool:
    """Tensors that another set of tasks or classes may replace."""
    return name.startswith(("main_decoders.", "aux_decoders.")) or bool(re.match(r"encoders\..+?\.out_conv\.", name))


def _replaceable(name: str, given: torch.Size, expected: torch.Size) -> bool:
    return _is_head(name) or _other_channels(name, given, expected)


def _other_channels(name: str, given: torch.Size, expected: torch.Size) -> bool:
    """True for a first convolution of another number of input channels."""
    same_rest = given[:1] == expected[:1] and given[2:] == expected[2:]
    return name.startswith("encoders.") and len(given) == 4 and len(expected) == 4 and same_rest


def _explain(path: Path, accounting: Accounting, spec: NetworkSpec) -> str:
    lines = [f"{path}: the weights do not fit the network ({spec.arch if spec.images else 'series only'})."]
    for name, given, expected in accounting.mismatched[:5]:
        line = f"{name}: got {list(given)}, expected {list(expected)}"
        if _is_head(name):
            line += " (another number of classes"
        elif _other_channels(name, torch.Size(given), torch.Size(expected)):
            line += f" (trained with {given[1]} channels, the configuration selects {expected[1]}"
        else:
            lines.append(line + ".")
            continue
        lines.append(f"{line}; correct the configuration, or make a start of it: `{_REINIT}`).")
    for kind in ("mismatched", "missing", "unexpected"):
        names = [item[0] if isinstance(item, tuple) else item for item in getattr(accounting, kind)]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"{len(names)} {kind}: {', '.join(names[:3])}{more}.")
    lines.append(f"{len(accounting.matched)} tensors match. Check inputs, tasks and architecture of the configuration.")
    return "\n  ".join(lines)
