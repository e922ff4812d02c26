"""L-TAE: one learned query per head attends over the dates of each pixel (Garnot & Landrieu, AALTD 2020).

The key projection is folded into the query and the value projection is applied after the sum over time, so that
nothing wider than the input is ever held for every date:

    score(head, t) = q(head) . (K (W z(t) + b + p(t))) = (q K W)(head) . z(t) + (q K)(head) . (b + p(t))
    sum_t a(t) (W z(t) + b + p(t)) = W (sum_t a(t) z(t)) + b sum_t a(t) + sum_t a(t) p(t)

with z the normalised features, p the positional code, W `inconv`, K the keys' projection. The normalisation is
affine per pixel and group, so it folds in the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    """Collapse the time axis of feature maps.

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
