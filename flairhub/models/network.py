"""The network: encoders, fusion, task heads, auxiliary heads.

Attribute names are those of the published weights, so that tensors keep their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flairhub.errors import UsageError
from flairhub.models.arch import Arch, parse_arch
from flairhub.models.decoders import ImageHead
from flairhub.models.encoders import Features, ImageEncoder, first_level, level_channels
from flairhub.models.network_spec import NetworkSpec, beside_images, series_out_widths
from flairhub.models.utae import UTAE

Size = tuple[int, int]


@dataclass
class Output:
    """What a forward pass gives.

    Attributes:
        logits: (batch, class, y, x) by task.
        aux: Auxiliary logits (batch, class, y, x) by (modality, task); empty unless asked for.
    """

    logits: dict[str, Tensor]
    aux: dict[tuple[str, str], Tensor] = field(default_factory=dict)


torch.export.register_dataclass(Output)


class Fusion(nn.Module):
    """The maps of all modalities, level by level, brought back to the reference modality's channels.

    Published as a 1x1 convolution over the concatenation of the resized maps. A 1x1 convolution and a bilinear resize
    commute, so each modality is convolved at its own resolution where that is coarser, and the results are summed: the
    same numbers without the large concatenation.

    Args:
        reference: Channels of the reference modality's levels, finest first.
        modalities: Channels of each modality's levels, in network order (the reference included).
        skipped: Levels that the decoder does not read; they get no convolution.
    """

    def __init__(self, reference: Sequence[int], modalities: Mapping[str, Sequence[int]], skipped: Sequence[int]):
        super().__init__()
        self.channels = {name: tuple(widths) for name, widths in modalities.items()}
        self.conv_f = nn.ModuleDict()
        for level, width in enumerate(reference):
            if level not in skipped:
                total = sum(widths[level] for widths in self.channels.values())
                self.conv_f[str(level)] = nn.Conv2d(total, width, 1)

    def forward(self, level: int, maps: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Fuse one level.

        Args:
            level: Position among the reference's levels.
            maps: (batch, channel, y, x) of the modalities that are present (at least one); the others count as zeros.
            size: Height and width of the result.

        Returns:
            (batch, channel, y, x).
        """
        conv = self.conv_f[str(level)]
        assert isinstance(conv, nn.Conv2d)
        weights = conv.weight.split([widths[level] for widths in self.channels.values()], dim=1)
        bias: Tensor | None = conv.bias
        total: Tensor | None = None
        for name, weight in zip(self.channels, weights, strict=True):
            if name not in maps:
                continue
            term = _convolve(maps[name], weight, bias, size)
            total = term if total is None else total + term
            bias = None  # once
        assert total is not None
        return total


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[-2:]) == size:
        return F.conv2d(x, weight, bias)
    if x.shape[-2] * x.shape[-1] > size[0] * size[1]:
        return F.conv2d(F.interpolate(x, size=size, mode="bilinear", align_corners=False), weight, bias)
    return F.interpolate(F.conv2d(x, weight, bias), size=size, mode="bilinear", align_corners=False)


class Network(nn.Module):
    """Segmentation network of any non-empty set of inputs and tasks.

    A modality of the spec may be missing from a forward pass or from some samples (`present`), and a series may have
    samples without a valid date: its features then count as zeros in the fusion, and in a network of series only the
    mean is taken over the series that are present. At least one input must be given. In training,
    `spec.modality_dropout` does the same per sample, always keeping at least one input.

    Args:
        spec: What to build.
        make_encoder: Builds an image encoder from architecture, channels and size.
    """

    def __init__(self, spec: NetworkSpec, make_encoder: Callable[[Arch, int, int], ImageEncoder] = ImageEncoder):
        super().__init__()
        self.spec = spec
        self.arch: Arch | None = parse_arch(spec.arch) if spec.images else None
        self.encoders = nn.ModuleDict()
        levels: dict[str, tuple[int, ...]] = {}
        for name in spec.images:
            assert self.arch is not None
            self.encoders[name] = make_encoder(self.arch, spec.inputs[name], spec.sizes[name])
            levels[name] = level_channels(self._out_channels(name))
        self.reference: str | None = spec.images[0] if spec.images else None
        options = spec.series
        if self.reference is not None:
            options = beside_images(options, len(levels[self.reference]))
        for name in spec.time_series:
            out_widths = series_out_widths(spec) if self.needs_series_logits(name) else None
            self.encoders[name] = UTAE(spec.inputs[name], options, out_widths)
            levels[name] = (options.encoder_widths[-1], *options.decoder_widths[-2::-1])
        self.fusion_handler: Fusion | None = None
        if self.reference is not None and len(spec.inputs) > 1:
            ordered = {name: levels[name] for name in spec.inputs}
            self.fusion_handler = Fusion(levels[self.reference], ordered, self._skipped_levels())
        self.main_decoders = nn.ModuleDict()
        if self.reference is not None:
            for task in spec.tasks:
                self.main_decoders[task] = self._image_head(self.reference, task)
        elif spec.series_heads:
            for task, classes in spec.tasks.items():
                self.main_decoders[task] = nn.Conv2d(series_out_widths(spec)[-1], classes, 1)
        self.aux_decoders = nn.ModuleDict()
        for name in spec.aux:
            for task, classes in spec.tasks.items():
                head = self._image_head(name, task) if name in spec.images else nn.Conv2d(spec.n_classes, classes, 1)
                self.aux_decoders[f"{name}__{task}"] = head

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        dates: Mapping[str, Tensor] | None = None,
        masks: Mapping[str, Tensor] | None = None,
        size: Size | None = None,
        aux: bool = False,
        present: Mapping[str, Tensor] | None = None,
    ) -> Output:
        """Run the network.

        Args:
            inputs: Prepared float tensors by modality: images (batch, channel, y, x), series
                (batch, time, channel, y, x).
            dates: Day offsets (batch, time) of each series.
            masks: (batch, time) bool of series, True = valid; a series without a mask is valid throughout.
            size: Height and width of the logits; default: those of the finest input given.
            aux: Whether to compute the auxiliary logits.
            present: (batch,) bool of modalities that some samples lack; every sample has a
                modality that is not listed. The values of a sample that lacks it are not used, but must be finite.

        Returns:
            Logits of every task, and auxiliary logits of the modalities that were given.

        Raises:
            UsageError: No input, an unknown one, or one whose shape does not fit.
        """
        inputs = {name: inputs[name] for name in self.spec.inputs if name in inputs} | dict(inputs)
        self._check(inputs, dates or {}, masks or {})
        if size is None:
            finest = max(inputs.values(), key=lambda x: x.shape[-2])
            size = (finest.shape[-2], finest.shape[-1])
        size = (int(size[0]), int(size[1]))
        images: dict[str, Features] = {}
        maps: dict[str, list[Tensor]] = {}
        logits: dict[str, Tensor] = {}
        available: dict[str, Tensor] = {}
        for name, x in inputs.items():
            if name in self.spec.images:
                images[name] = self.encoders[name](x)
                maps[name] = images[name].maps[first_level(self._out_channels(name)) :]
            else:
                mask = None if masks is None else masks.get(name)
                maps[name], series_logits, dated = self._encode_series(name, x, dates[name], mask, aux)  # type: ignore[index]
                if series_logits is not None:
                    logits[name] = series_logits
                if dated is not None:
                    available[name] = dated
        for name, given in (present or {}).items():
            if name in inputs:
                available[name] = available[name] & given.bool() if name in available else given.bool()
        available = self.draw_dropout(inputs, available)
        if self.reference is None:
            main = self._series_logits(logits, available)
        else:
            main = self._image_logits(images, maps, available, size)
        result = Output({task: _resize(values, size) for task, values in main.items()})
        if aux:
            result.aux = {key: _resize(values, size) for key, values in self._aux_logits(images, logits).items()}
        return result

    def needs_series_logits(self, name: str) -> bool:
        """Whether a series has a block of logits: without images, or for an auxiliary head."""
        return not self.spec.images or name in self.spec.aux

    def _image_head(self, modality: str, task: str) -> ImageHead:
        assert self.arch is not None
        return ImageHead(self.arch, self._out_channels(modality), self.spec.tasks[task], self.spec.sizes[modality])

    def _out_channels(self, image: str | None) -> tuple[int, ...]:
        encoder = self.encoders[image] if image is not None else None
        assert isinstance(encoder, ImageEncoder)
        return encoder.out_channels

    def _skipped_levels(self) -> tuple[int, ...]:
        """The full resolution, of which decoders read at most the size (DPT has no such level)."""
        assert self.arch is not None
        full = first_level(self._out_channels(self.reference)) == 0
        return (0,) if full and self.arch.decoder != "dpt" else ()

    def _check(self, inputs: Mapping[str, Tensor], dates: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        if not inputs:
            raise UsageError(f"no input given: the network takes {', '.join(self.spec.inputs)}, at least one.")
        for name, x in inputs.items():
            if name not in self.spec.inputs:
                raise UsageError(f"unknown input {name!r}: the network takes {', '.join(self.spec.inputs)}.")
            series = name in self.spec.time_series
            axes = "(batch, time, channel, y, x)" if series else "(batch, channel, y, x)"
            if x.ndim != 4 + series or x.shape[-3] != self.spec.inputs[name]:
                raise UsageError(
                    f"{name}: got shape {tuple(x.shape)}, expected {axes} with {self.spec.inputs[name]} channels."
                )
            if series and (name not in dates or dates[name].shape != x.shape[:2]):
                got = tuple(dates[name].shape) if name in dates else "none"
                raise UsageError(f"{name}: got day offsets {got}, expected one per date {tuple(x.shape[:2])}.")
            if series and name in masks and masks[name].shape != x.shape[:2]:
                got = tuple(masks[name].shape)
                raise UsageError(
                    f"{name}: got a mask of shape {got}, expected one value per date {tuple(x.shape[:2])}."
                )

    def _encode_series(
        self, name: str, x: Tensor, dates: Tensor, mask: Tensor | None, aux: bool
    ) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """Maps fine to coarse as fusion pairs them, logits, and which samples have a date (None = all)."""
        present = None
        if mask is not None:
            mask = mask.bool()
            present = mask.any(dim=1)
            # The first date of an empty sample is computed so that every sample has one; its result is not used.
            first = torch.arange(mask.shape[1], device=mask.device) == 0
            mask = mask | (first & ~present.unsqueeze(1))
        wanted = self.reference is None or (aux and name in self.spec.aux)
        logits, maps = self.encoders[name](x, dates, mask, logits=wanted)
        return maps, logits, present

    def draw_dropout(self, inputs: Mapping[str, Tensor], present: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draw which samples keep which modality.

        Args:
            inputs: What is given, by modality.
            present: Samples that have a modality, (batch,) bool; all have a modality that is not listed.

        Returns:
            Likewise for the samples that keep it: `present` itself outside of training.
        """
        if not self.training or not self.spec.modality_dropout or len(inputs) == 1:
            return present
        first = next(iter(inputs.values()))
        rates = [self.spec.modality_dropout.get(name, 0.0) for name in inputs]
        everywhere = torch.ones(first.shape[0], dtype=torch.bool, device=first.device)
        available = torch.stack([present.get(name, everywhere) for name in inputs], dim=1)
        kept = draw_kept(torch.tensor(rates, device=first.device), available)
        return dict(zip(inputs, kept.unbind(dim=1), strict=True))

    def _series_logits(self, logits: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mean over the series that are present, then one 1x1 convolution per task where there are several."""
        grid = max((tuple(values.shape[-2:]) for values in logits.values()), key=lambda shape: shape[0])
        stacked = torch.stack([_resize(values, (grid[0], grid[1])) for values in logits.values()])
        if present:
            everywhere = stacked.new_ones(stacked.shape[1], dtype=torch.bool)
            weights = torch.stack([present.get(name, everywhere) for name in logits]).to(stacked.dtype)
            weights = weights / weights.sum(dim=0).clamp(min=1)
            mean = (stacked * weights[:, :, None, None, None]).sum(dim=0)
        else:
            mean = stacked.mean(dim=0)
        if not self.main_decoders:
            return dict.fromkeys(self.spec.tasks, mean)
        return {task: self.main_decoders[task](mean) for task in self.spec.tasks}

    def _image_logits(
        self,
        images: Mapping[str, Features],
        maps: Mapping[str, list[Tensor]],
        present: Mapping[str, Tensor],
        size: Size,
    ) -> dict[str, Tensor]:
        """Fuse and decode on the reference modality's grid."""
        assert self.reference is not None
        reference = images.get(self.reference)
        if self.fusion_handler is None:
            assert reference is not None
            fused = reference
        else:
            fused = self._fuse(reference, maps, present, size)
        return {task: self.main_decoders[task](fused) for task in self.spec.tasks}

    def _fuse(
        self, reference: Features | None, maps: Mapping[str, list[Tensor]], present: Mapping[str, Tensor], size: Size
    ) -> Features:
        assert self.fusion_handler is not None
        if reference is None:
            reference = self._stand_in(maps, size)
        start = first_level(self._out_channels(self.reference))
        skipped = self._skipped_levels()
        result = list(reference.maps)
        for level in range(len(result) - start):
            if level in skipped:
                continue
            parts = {name: _keep(levels[level], present.get(name)) for name, levels in maps.items()}
            shape = result[start + level].shape
            result[start + level] = self.fusion_handler(level, parts, (shape[-2], shape[-1]))
        return Features(result, reference.tokens)

    def _stand_in(self, maps: Mapping[str, list[Tensor]], size: Size) -> Features:
        """Zeros of the shapes that the missing reference modality would give for an output of `size`."""
        assert self.reference is not None
        scale = self.spec.sizes[self.reference] / max(self.spec.sizes.values())
        pixels = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        like = next(iter(maps.values()))[-1]
        with torch.no_grad():
            encoder = self.encoders[self.reference]
            training = encoder.training
            encoder.eval()
            shapes = encoder(like.new_zeros(1, self.spec.inputs[self.reference], *pixels))
            encoder.train(training)
        zeros = [like.new_zeros(like.shape[0], *values.shape[1:]) for values in shapes.maps]
        tokens = shapes.tokens
        if tokens is not None:
            tokens = [None if t is None else t.new_zeros(like.shape[0], *t.shape[1:]) for t in tokens]
        return Features(zeros, tokens)

    def _aux_logits(
        self, images: Mapping[str, Features], logits: Mapping[str, Tensor]
    ) -> dict[tuple[str, str], Tensor]:
        result = {}
        for name in self.spec.aux:
            for task in self.spec.tasks:
                head = self.aux_decoders[f"{name}__{task}"]
                if name in images:
                    result[name, task] = head(images[name])
                elif name in logits:
                    result[name, task] = head(logits[name])
        return result


def draw_kept(rates: Tensor, available: Tensor) -> Tensor:
    """Draw Bernoulli per sample and modality, then give samples without any modality one back.

    The one given back is drawn in proportion to its chance of being kept (evenly where all rates are 1).

    Args:
        rates: (modality,) probability of being dropped.
        available: (batch, modality) bool, what the samples have.

    Returns:
        (batch, modality) bool; at least one True per sample that has any modality.
    """
    kept = available & (torch.rand(available.shape, device=available.device) >= rates)
    chance = (1 - rates).clamp(min=1e-6) * available
    chance = torch.where(available.any(dim=1, keepdim=True), chance, torch.ones_like(chance))
    rescue = torch.multinomial(chance, 1)
    rescued = torch.zeros_like(kept).scatter(1, rescue, True) & available
    return torch.where(kept.any(dim=1, keepdim=True), kept, rescued)


def _keep(x: Tensor, kept: Tensor | None) -> Tensor:
    """Zero the samples that are not kept, whatever they hold."""
    return (
        x
        if kept is None
        else torch.where(kept[:, None, None, None], x, torch.zeros((), dtype=x.dtype, device=x.device))
    )


def _resize(x: Tensor, size: Size) -> Tensor:
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
