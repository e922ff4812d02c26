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

from flairhub.config import NORM_GROUPS, PaddingMode, SeriesOptions
from flairhub.errors import UsageError
from flairhub.models.network_spec import check_series_options

_LONGEST_PERIOD_DAYS = 1000.0


class _Attention(nn.Module):
    """Queries and key projection under their published names."""

    def __init__(self, n_head: int, d_k: int, d_model: int):
        super().__init__()
        self.Q = nn.Parameter(torch.empty(n_head, d_k))
        self.fc1_k = nn.Linear(d_model, n_head * d_k)
        nn.init.normal_(self.Q, mean=0, std=(2.0 / d_k) ** 0.5)
        nn.init.normal_(self.fc1_k.weight, mean=0, std=(2.0 / d_k) ** 0.5)


class TemporalEncoder(nn.Module):
    """L-TAE: one learned query per head attends over the dates of each pixel (Garnot & Landrieu, AALTD 2020).

    The key projection is folded into the query and the value projection is applied after the sum over time, so that
    nothing wider than the input is ever in memory for every date:

        score(head, t) = q(head) . (K (W z(t) + b + p(t))) = (q K W)(head) . z(t) + (q K)(head) . (b + p(t))
        sum_t a(t) (W z(t) + b + p(t)) = W (sum_t a(t) z(t)) + b sum_t a(t) + sum_t a(t) p(t)

    with z the normalised features, p the positional code, W `inconv`, K the keys' projection. The normalisation is
    affine per pixel and group, so it folds in the same way.

    Args:
        channels: Channels of the maps in and out.
        n_head: Attention heads; also the groups of the normalisations.
        d_model: Width of the values over all heads.
        d_k: Width of a key.
    """

    def __init__(self, channels: int, n_head: int, d_model: int, d_k: int):
        super().__init__()
        self.n_head = n_head
        self.code_width = d_model // n_head
        self.in_norm = nn.GroupNorm(n_head, channels)
        self.inconv = nn.Conv1d(channels, d_model, 1)
        self.attention_heads = _Attention(n_head, d_k, d_model)
        self.attention_dropout = nn.Dropout(0.1)
        self.mlp = nn.Sequential(nn.Linear(d_model, channels), nn.BatchNorm1d(channels), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(0.2)
        self.out_norm = nn.GroupNorm(n_head, channels)

    def forward(self, x: Tensor, dates: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attend over time, per pixel.

        Args:
            x: (batch, time, channel, y, x); padded dates are finite.
            dates: (batch, time) day offsets.
            valid: (batch, time) bool, at least one True per sample; None = all.

        Returns:
            The collapsed map (batch, channel, y, x) and the attention (batch, time, head, y, x), 0 at padded dates.
        """
        batch, _, channels, height, width = x.shape
        wide = torch.promote_types(x.dtype, torch.float32)  # statistics and softmax
        code = self._code(dates, wide)  # (batch, time, code)
        z = x.flatten(3).permute(0, 3, 1, 2).contiguous()  # (batch, pixel, time, channel)
        scale, shift = self._normalisation(z.to(wide), valid)  # (batch, pixel, channel)
        z = z.flatten(0, 1)
        attention = self.attention_dropout(self._attend(z, scale, code, valid))  # (batch * pixel, head, time)
        pooled = torch.bmm(attention.to(z.dtype), z)  # (batch * pixel, head, channel)
        out = self._values(pooled, attention, scale, shift, code)
        out = self.out_norm(self.dropout(self.mlp(out.to(x.dtype))))
        out = out.view(batch, height, width, channels).permute(0, 3, 1, 2)
        attention = attention.to(x.dtype).view(batch, height, width, self.n_head, -1).permute(0, 4, 3, 1, 2)
        return out, attention

    def _normalisation(self, z: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel of each pixel, both (batch, pixel, channel).

        Group statistics over the channels of a group and the valid dates, in two passes.

        Args:
            z: (batch, pixel, time, channel).
            valid: (batch, time) bool, or None.
        """
        mean = self._per_group(_mean_over_time(z, valid))
        variance = self._per_group(_mean_over_time((z - mean.unsqueeze(2)).square(), valid))
        scale = torch.rsqrt(variance + self.in_norm.eps) * self.in_norm.weight
        return scale, self.in_norm.bias - mean * scale

    def _per_group(self, x: Tensor) -> Tensor:
        """Mean over the channels of each group, spread over those channels again: (..., channel)."""
        groups = x.unflatten(-1, (self.n_head, -1))
        return groups.mean(dim=-1, keepdim=True).expand_as(groups).flatten(-2)

    def _code(self, dates: Tensor, dtype: torch.dtype) -> Tensor:
        """Positional code of day offsets, (batch, time, d_model / n_head): sine at even, cosine at odd places."""
        place = torch.arange(self.code_width, device=dates.device)
        exponent = 2.0 * torch.div(place, 2, rounding_mode="floor") / self.code_width
        angle = dates.to(dtype).unsqueeze(-1) / _LONGEST_PERIOD_DAYS**exponent
        return torch.where(place % 2 == 0, angle.sin(), angle.cos())

    def _attend(self, z: Tensor, scale: Tensor, code: Tensor, valid: Tensor | None) -> Tensor:
        """Attention weights (batch * pixel, head, time), before dropout.

        What is the same for all dates of a pixel (the shift of the normalisation, the bias of the values) cancels in
        the softmax and is left out; the keys' bias cancels too and stays for its (zero) gradient.
        """
        batch, pixels, channels = scale.shape
        heads, dtype = self.attention_heads, scale.dtype
        queries = heads.Q.to(dtype) / heads.Q.shape[1] ** 0.5
        keys = heads.fc1_k.weight.to(dtype).view(self.n_head, -1, self.n_head * self.code_width)
        query = torch.einsum("hk,hkd->hd", queries, keys)
        constant = (queries * heads.fc1_k.bias.to(dtype).view_as(queries)).sum(dim=1)
        folded = query @ self.inconv.weight.squeeze(2).to(query.dtype)  # (head, channel)
        # The positional code is the same for every head's slice of the model width.
        position = code @ query.to(code.dtype).unflatten(1, (self.n_head, -1)).sum(dim=1).t()  # (batch, time, head)
        weights = (scale.unsqueeze(2) * folded).view(batch * pixels, self.n_head, channels)
        scores = torch.bmm(weights.to(z.dtype), z.transpose(1, 2)).to(dtype).view(batch, pixels, self.n_head, -1)
        scores = scores + (position + constant).transpose(1, 2).unsqueeze(1)
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, None, :], float("-inf"))
        return F.softmax(scores, dim=3).flatten(0, 1)

    def _values(self, pooled: Tensor, attention: Tensor, scale: Tensor, shift: Tensor, code: Tensor) -> Tensor:
        """Values of all heads summed over time, (batch * pixel, d_model)."""
        batch, pixels, channels = scale.shape
        bias = self.inconv.bias
        assert bias is not None
        total = attention.sum(dim=2, keepdim=True)  # 1, except under dropout
        pooled = pooled * scale.view(-1, 1, channels) + total * shift.view(-1, 1, channels)
        slices = self.inconv.weight.view(self.n_head, self.code_width, channels)
        values = torch.einsum("phc,hdc->phd", pooled, slices.to(pooled.dtype))
        values = values + total * bias.view(self.n_head, self.code_width)
        code_sum = torch.bmm(attention.view(batch, pixels * self.n_head, -1), code)
        return (values + code_sum.view_as(values)).flatten(1)


def _mean_over_time(x: Tensor, valid: Tensor | None) -> Tensor:
    """(batch, pixel, time, channel) -> (batch, pixel, channel) over the valid dates."""
    if valid is None:
        return x.mean(dim=2)
    weights = valid.to(x.dtype) / valid.sum(dim=1, keepdim=True)
    return (x * weights[:, None, :, None]).sum(dim=2)


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

    Raises:
        UsageError: The options do not fit together.
    """

    def __init__(self, channels: int, options: SeriesOptions, out_widths: Sequence[int] | None):
        super().__init__()
        check_series_options(options)
        self.options = options
        self.agg_mode = options.agg_mode  # a plain value: what is traced for compilation reads no configuration
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
        if self.agg_mode == "mean":
            if frames.valid is None:
                return frames.sum(skip) / frames.shape[1]
            weights = frames.valid.to(skip.dtype)
            total = frames.sum(skip * frames.pack(weights)[:, None, None, None])
            return total / weights.sum(dim=1)[:, None, None, None]
        weights = attention
        if self.agg_mode == "att_mean":
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
        return nn.GroupNorm(NORM_GROUPS, width)
    return nn.BatchNorm2d(width) if kind == "batch" else nn.InstanceNorm2d(width)
