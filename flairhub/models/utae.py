"""U-TAE: spatial encoder per date, temporal attention, decoder (Garnot & Landrieu, ICCV 2021).

Written from the paper. Valid dates are given by a mask; padded dates are never computed, and every statistic is
taken over valid dates of one sample, so that logits do not depend on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flairhub.errors import UsageError
from flairhub.models.ltae import TemporalEncoder
from flairhub.models.spec import PaddingMode, SeriesOptions

_NORM_GROUPS = 4


class ConvLayer(nn.Module):
    """3x3 convolution, normalisation and ReLU, once per pair of consecutive widths."""

    def __init__(
        self,
        widths: Sequence[int],
        norm: str,
        padding_mode: PaddingMode,
        kernel: int = 3,
        stride: int = 1,
        padding: int = 1,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            layers += [
                nn.Conv2d(width, next_width, kernel, stride, padding, padding_mode=padding_mode),
                _make_norm(norm, next_width),
                nn.ReLU(inplace=True),
            ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(frame, channel, y, x) -> (frame, channel, y, x)."""
        return self.conv(x)


class _ConvBlock(nn.Module):
    """A `ConvLayer` under the published name."""

    def __init__(self, widths: Sequence[int], norm: str, padding_mode: PaddingMode):
        super().__init__()
        self.conv = ConvLayer(widths, norm, padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _DownBlock(nn.Module):
    """Strided convolution, then two convolutions, the second one residual."""

    def __init__(self, width: int, next_width: int, options: SeriesOptions):
        super().__init__()
        norm, mode = options.encoder_norm, options.padding_mode
        strided = (options.str_conv_k, options.str_conv_s, options.str_conv_p)
        self.down = ConvLayer([width, width], norm, mode, *strided)
        self.conv1 = ConvLayer([width, next_width], norm, mode)
        self.conv2 = ConvLayer([next_width, next_width], norm, mode)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.down(x))
        return x + self.conv2(x)


class _UpBlock(nn.Module):
    """Transposed convolution, concatenation with the skip, then two convolutions, the second one residual."""

    def __init__(self, width: int, next_width: int, skip_width: int, options: SeriesOptions):
        super().__init__()
        mode = options.padding_mode
        strided = (options.str_conv_k, options.str_conv_s, options.str_conv_p)
        self.skip_conv = nn.Sequential(
            nn.Conv2d(skip_width, skip_width, 1), nn.BatchNorm2d(skip_width), nn.ReLU(inplace=True)
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(width, next_width, *strided), nn.BatchNorm2d(next_width), nn.ReLU(inplace=True)
        )
        self.conv1 = ConvLayer([next_width + skip_width, next_width], "batch", mode)
        self.conv2 = ConvLayer([next_width, next_width], "batch", mode)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = self.up(x)
        if up.shape[-2:] != skip.shape[-2:]:  # odd sizes under a stride
            up = F.interpolate(up, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        x = self.conv1(torch.cat([up, self.skip_conv(skip)], dim=1))
        return x + self.conv2(x)


@dataclass(frozen=True)
class _Frames:
    """Which dates of a padded batch are computed.

    Attributes:
        shape: (batch, time).
        index: Flat positions (batch * time) of the valid dates in order; None = every date is a frame.
        lengths: Valid dates of each sample; None where `index` is None.
        valid: (batch, time) bool; None = all.
    """

    shape: tuple[int, int]
    index: Tensor | None
    lengths: list[int] | None
    valid: Tensor | None

    def pack(self, x: Tensor) -> Tensor:
        """(batch, time, ...) -> (frame, ...)."""
        x = x.flatten(0, 1)
        return x if self.index is None else x.index_select(0, self.index)

    def unpack(self, x: Tensor) -> Tensor:
        """(frame, ...) -> (batch, time, ...), zeros at padded dates."""
        if self.index is not None:
            x = x.new_zeros(self.shape[0] * self.shape[1], *x.shape[1:]).index_copy_(0, self.index, x)
        return x.unflatten(0, self.shape)

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the dates of each sample: (frame, ...) -> (batch, ...)."""
        if self.lengths is None:
            return x.unflatten(0, self.shape).sum(dim=1)
        return torch.stack([part.sum(dim=0) for part in x.split(self.lengths)])


class UTAE(nn.Module):
    """Encoder of one time series.

    Args:
        channels: Bands of one date.
        options: Widths, attention and normalisation.
        out_widths: Widths of the logits block after the finest decoder stage; None builds no logits.
    """

    def __init__(self, channels: int, options: SeriesOptions, out_widths: Sequence[int] | None):
        super().__init__()
        self.options = options
        down, up = options.encoder_widths, options.decoder_widths
        mode = options.padding_mode
        self.in_conv = _ConvBlock([channels, down[0], down[0]], options.encoder_norm, mode)
        self.down_blocks = nn.ModuleList(_DownBlock(*pair, options) for pair in pairwise(down))
        stages = range(len(up) - 1, 0, -1)
        self.up_blocks = nn.ModuleList(_UpBlock(up[i], up[i - 1], down[i - 1], options) for i in stages)
        self.temporal_encoder = TemporalEncoder(down[-1], options.n_head, options.d_model, options.d_k)
        self.out_conv = None if out_widths is None else _ConvBlock([up[0], *out_widths], "batch", mode)

    def forward(
        self, x: Tensor, dates: Tensor, mask: Tensor | None = None, logits: bool = True
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Encode a batch of series.

        Args:
            x: (batch, time, channel, y, x) float.
            dates: (batch, time) day offsets.
            mask: (batch, time) bool, True = valid; None = all valid. Every sample has a valid date.
            logits: Whether to compute the logits.

        Returns:
            Logits (batch, class, y, x) or None, and the maps (batch, channel, y, x): the temporal encoder's
            output, then each up block's, coarse to fine.

        Raises:
            UsageError: The images are too small for the strides.
        """
        if not torch.compiler.is_compiling():
            self._check_size(int(x.shape[-2]), int(x.shape[-1]))
        frames = self._frames(x, mask)
        maps = [self.in_conv(frames.pack(x).contiguous(memory_format=torch.channels_last))]
        for block in self.down_blocks:
            maps.append(block(maps[-1]))
        out, attention = self.temporal_encoder(frames.unpack(maps[-1]), dates, frames.valid)
        attention = frames.pack(attention)
        decoded = [out.contiguous(memory_format=torch.channels_last)]
        for block, skip in zip(self.up_blocks, reversed(maps[:-1]), strict=True):
            decoded.append(block(decoded[-1], self._collapse(skip, attention, frames)))
        result = self.out_conv(decoded[-1]) if logits and self.out_conv is not None else None
        return result, decoded

    def _check_size(self, height: int, width: int) -> None:
        options, least = self.options, 2 if self.options.padding_mode == "reflect" else 1
        kernel, stride, padding = options.str_conv_k, options.str_conv_s, options.str_conv_p
        size = min(height, width)
        for level in range(len(options.encoder_widths)):
            if level:
                size = (size + 2 * padding - kernel) // stride + 1
            if size < least:
                raise UsageError(
                    f"series of {height} x {width} pixels are too small for {len(options.encoder_widths)} levels with "
                    f"str_conv_k {kernel}, str_conv_s {stride}, str_conv_p {padding}: level {level + 1} would have "
                    f"{max(size, 0)} pixels, at least {least} are needed. Published: str_conv_k 3, str_conv_s 1, "
                    "str_conv_p 1, which keeps the size."
                )

    def _frames(self, x: Tensor, mask: Tensor | None) -> _Frames:
        shape = (x.shape[0], x.shape[1])
        if mask is None:
            return _Frames(shape, None, None, None)
        if torch.compiler.is_compiling():  # fixed shapes: padded dates are computed and masked
            return _Frames(shape, None, None, mask)
        lengths = mask.sum(dim=1).tolist()
        if sum(lengths) == mask.numel():
            return _Frames(shape, None, None, None)
        return _Frames(shape, mask.flatten().nonzero().squeeze(1), lengths, mask)

    def _collapse(self, skip: Tensor, attention: Tensor, frames: _Frames) -> Tensor:
        """Weighted sum of a skip map over the dates of each sample.

        Args:
            skip: (frame, channel, y, x).
            attention: (frame, head, y, x) of the deepest stage.
            frames: How frames belong to samples.

        Returns:
            (batch, channel, y, x).
        """
        if self.options.agg_mode == "mean":
            if frames.valid is None:
                return frames.sum(skip) / frames.shape[1]
            weights = frames.valid.to(skip.dtype)
            total = frames.sum(skip * frames.pack(weights)[:, None, None, None])
            return total / weights.sum(dim=1)[:, None, None, None]
        weights = attention
        if self.options.agg_mode == "att_mean":
            weights = weights.mean(dim=1, keepdim=True)
        weights = _resize_attention(weights, skip.shape[-2:])
        heads = weights.shape[1]
        # (frame, head, channel of head, y, x)
        return frames.sum(skip.unflatten(1, (heads, -1)) * weights.unsqueeze(2)).flatten(1, 2)


def _resize_attention(attention: Tensor, size: torch.Size) -> Tensor:
    """Bilinear where the map is larger, average pooling where it is smaller."""
    if attention.shape[-2:] == size:
        return attention
    if size[0] < attention.shape[-2] or size[1] < attention.shape[-1]:
        return F.adaptive_avg_pool2d(attention, (size[0], size[1]))
    return F.interpolate(attention, size=(size[0], size[1]), mode="bilinear", align_corners=False)


def _make_norm(kind: str, width: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(_NORM_GROUPS, width)
    return nn.BatchNorm2d(width) if kind == "batch" else nn.InstanceNorm2d(width)
