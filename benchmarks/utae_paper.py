"""U-TAE as the paper's module computes it: the yardstick of `benchmarks/utae.py`.

A plain transcription of the method of Garnot & Landrieu (ICCV 2021) with its habits: padded dates are found by their
value, every shared block runs once on zeros to learn its output shape, the temporal encoder holds keys and values of
the full model width for every date, and skips are weighted group by group through stacks and concatenations.
Parameter names are those of `flairhub.models.utae`, so that both take the same weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _layers(widths: list[int], norm: str, kernel: tuple[int, int, int] = (3, 1, 1)) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, width in enumerate(widths[:-1]):
        layers.append(nn.Conv2d(width, widths[i + 1], *kernel, padding_mode="reflect"))
        layers.append(nn.GroupNorm(4, widths[i + 1]) if norm == "group" else nn.BatchNorm2d(widths[i + 1]))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class Layer(nn.Module):
    def __init__(self, widths: list[int], norm: str, kernel: tuple[int, int, int] = (3, 1, 1)):
        super().__init__()
        self.conv = _layers(widths, norm, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SharedBlock(nn.Module):
    """A block that is applied to every date; padded dates get the pad value."""

    def per_date(self, x: Tensor, pad_value: float = 0.0) -> Tensor:
        batch, time = x.shape[:2]
        frames = x.reshape(batch * time, *x.shape[2:])
        shape = self(torch.zeros_like(frames)).shape  # the dummy pass
        padded = (frames == pad_value).flatten(1).all(dim=1)
        if padded.any():
            out = torch.full(shape, pad_value, dtype=x.dtype)
            out[~padded] = self(frames[~padded])
        else:
            out = self(frames)
        return out.reshape(batch, time, *out.shape[1:])


class Block(SharedBlock):
    def __init__(self, widths: list[int], norm: str):
        super().__init__()
        self.conv = Layer(widths, norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Down(SharedBlock):
    def __init__(self, width: int, next_width: int, kernel: tuple[int, int, int]):
        super().__init__()
        self.down = Layer([width, width], "group", kernel)
        self.conv1 = Layer([width, next_width], "group")
        self.conv2 = Layer([next_width, next_width], "group")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.down(x))
        return x + self.conv2(x)


class Up(nn.Module):
    def __init__(self, width: int, next_width: int, skip_width: int, kernel: tuple[int, int, int]):
        super().__init__()
        self.skip_conv = nn.Sequential(nn.Conv2d(skip_width, skip_width, 1), nn.BatchNorm2d(skip_width), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(width, next_width, *kernel), nn.BatchNorm2d(next_width), nn.ReLU())
        self.conv1 = Layer([next_width + skip_width, next_width], "batch")
        self.conv2 = Layer([next_width, next_width], "batch")

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.conv1(torch.cat([self.up(x), self.skip_conv(skip)], dim=1))
        return x + self.conv2(x)


class Heads(nn.Module):
    def __init__(self, n_head: int, d_k: int, d_model: int):
        super().__init__()
        self.Q = nn.Parameter(torch.randn(n_head, d_k))
        self.fc1_k = nn.Linear(d_model, n_head * d_k)

    def forward(self, values: Tensor, padded: Tensor, dropout: nn.Module) -> tuple[Tensor, Tensor]:
        """values (pixel, time, d_model), padded (pixel, time)."""
        n_head, d_k = self.Q.shape
        pixels, time, width = values.shape
        keys = self.fc1_k(values).view(pixels, time, n_head, d_k)
        keys = keys.permute(2, 0, 1, 3).reshape(n_head * pixels, time, d_k)
        query = self.Q.unsqueeze(1).expand(-1, pixels, -1).reshape(n_head * pixels, 1, d_k)
        split = torch.stack(values.split(width // n_head, dim=2)).reshape(n_head * pixels, time, -1)
        scores = torch.matmul(query, keys.transpose(1, 2)) / d_k**0.5
        scores = scores.masked_fill(padded.repeat(n_head, 1).unsqueeze(1), -1e3)
        attention = dropout(torch.softmax(scores, dim=2))
        out = torch.matmul(attention, split).view(n_head, pixels, -1)
        return out, attention.view(n_head, pixels, time)


class Temporal(nn.Module):
    def __init__(self, channels: int, n_head: int, d_model: int, d_k: int):
        super().__init__()
        self.n_head, self.d_model = n_head, d_model
        self.in_norm = nn.GroupNorm(n_head, channels)
        self.inconv = nn.Conv1d(channels, d_model, 1)
        self.attention_heads = Heads(n_head, d_k, d_model)
        self.attention_dropout = nn.Dropout(0.1)
        self.mlp = nn.Sequential(nn.Linear(d_model, channels), nn.BatchNorm1d(channels), nn.ReLU())
        self.dropout = nn.Dropout(0.2)
        self.out_norm = nn.GroupNorm(n_head, channels)

    def _positions(self, dates: Tensor) -> Tensor:
        width = self.d_model // self.n_head
        place = torch.arange(width)
        code = dates.unsqueeze(-1) / torch.pow(1000.0, 2 * (place // 2) / width)
        code[..., 0::2] = torch.sin(code[..., 0::2])
        code[..., 1::2] = torch.cos(code[..., 1::2])
        return torch.cat([code] * self.n_head, dim=-1)

    def forward(self, x: Tensor, dates: Tensor, padded: Tensor) -> tuple[Tensor, Tensor]:
        batch, time, channels, height, width = x.shape
        pixels = batch * height * width
        mask = padded[:, None, None, :].expand(-1, height, width, -1).reshape(pixels, time)
        out = x.permute(0, 3, 4, 1, 2).reshape(pixels, time, channels)
        out = self.in_norm(out.permute(0, 2, 1))
        out = self.inconv(out).permute(0, 2, 1)
        days = dates[:, None, None, :].expand(-1, height, width, -1).reshape(pixels, time)
        out = out + self._positions(days)
        out, attention = self.attention_heads(out, mask, self.attention_dropout)
        out = out.permute(1, 0, 2).reshape(pixels, -1)
        out = self.out_norm(self.dropout(self.mlp(out)))
        out = out.view(batch, height, width, -1).permute(0, 3, 1, 2)
        attention = attention.view(self.n_head, batch, height, width, time).permute(0, 1, 4, 2, 3)
        return out, attention


class PaperUTAE(nn.Module):
    """The whole encoder; same parameters as `flairhub.models.utae.UTAE` with group norm and grouped attention."""

    def __init__(
        self,
        channels: int = 10,
        down: tuple[int, ...] = (64, 64, 64, 128),
        up: tuple[int, ...] = (32, 32, 64, 128),
        out: tuple[int, ...] = (32, 19),
        kernel: tuple[int, int, int] = (3, 1, 1),
    ):
        super().__init__()
        self.in_conv = Block([channels, down[0], down[0]], "group")
        self.down_blocks = nn.ModuleList(Down(down[i], down[i + 1], kernel) for i in range(len(down) - 1))
        stages = range(len(up) - 1, 0, -1)
        self.up_blocks = nn.ModuleList(Up(up[i], up[i - 1], down[i - 1], kernel) for i in stages)
        self.temporal_encoder = Temporal(down[-1], 16, 256, 4)
        self.out_conv = Block([up[0], *out], "batch")

    def forward(self, x: Tensor, dates: Tensor, pad_value: float = 0.0) -> tuple[Tensor, list[Tensor]]:
        padded = (x == pad_value).flatten(2).all(dim=2)
        maps = [self.in_conv.per_date(x)]
        for block in self.down_blocks:
            maps.append(block.per_date(maps[-1]))
        out, attention = self.temporal_encoder(maps[-1], dates, padded)
        decoded = [out]
        for i, block in enumerate(self.up_blocks):
            out = block(out, self._aggregate(maps[-(i + 2)], attention, padded))
            decoded.append(out)
        return self.out_conv(out), decoded

    def _aggregate(self, x: Tensor, attention: Tensor, padded: Tensor) -> Tensor:
        n_head, batch, time, height, width = attention.shape
        weights = attention.reshape(n_head * batch, time, height, width)
        if x.shape[-2] > height:
            weights = nn.Upsample(size=x.shape[-2:], mode="bilinear", align_corners=False)(weights)
        else:
            weights = nn.AvgPool2d(kernel_size=height // x.shape[-2])(weights)
        weights = weights.view(n_head, batch, time, *x.shape[-2:])
        weights = weights * (~padded).float()[None, :, :, None, None]
        groups = torch.stack(x.chunk(n_head, dim=2))
        groups = (weights[:, :, :, None] * groups).sum(dim=2)
        return torch.cat(list(groups), dim=1)
