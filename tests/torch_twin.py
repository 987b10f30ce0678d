"""The mask networks as plain PyTorch modules, whose tensors have the official names.

Arranged as published:
upsample, convolve, full-size features, inner products last.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipsep_jax.config import ModelConfig
from clipsep_jax.models.unet import level_widths


def _down(num_in: int, num_out: int) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, kernel_size=4, stride=2, padding=1, bias=False)


def _up(num_in: int, num_out: int, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, kernel_size=3, padding=1, bias=bias)


def _upsample() -> nn.Upsample:
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)


class _Block(nn.Module):
    """A level of the U-Net around its inner levels: input and output side by side, except for the outermost."""

    def __init__(self, layers: list[nn.Module], *, outermost: bool = False):
        super().__init__()
        self.outermost = outermost
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.model(x)
        return y if self.outermost else torch.cat([x, y], dim=1)


def _blocks(widths: list[int], num_in: int, num_out: int) -> _Block:
    block: nn.Module = nn.Identity()  # stands in where the outermost level is the only one
    for level in range(len(widths) - 1, 0, -1):
        outer, inner = widths[level - 1], widths[level]
        layers: list[nn.Module] = [nn.LeakyReLU(0.2), _down(outer, inner)]
        innermost = level == len(widths) - 1
        if not innermost:
            layers += [nn.BatchNorm2d(inner), block]
        layers += [nn.ReLU(), _upsample(), _up(inner if innermost else 2 * inner, outer), nn.BatchNorm2d(outer)]
        block = _Block(layers)
    width = widths[0] if len(widths) == 1 else 2 * widths[0]
    layers = [_down(num_in, widths[0]), block, nn.ReLU(), _upsample(), _up(width, num_out, bias=True)]
    return _Block(layers, outermost=True)


class _ConditionedBlock(nn.Module):
    """A level of the U-Net of middle fusion; every level has a `downnorm`, unused at both ends."""

    def __init__(self, widths: list[int], level: int, num_condition: int):
        super().__init__()
        self.outermost, self.innermost = level == 0, level == len(widths) - 1
        outer = 1 if self.outermost else widths[level - 1]
        self.downconv = _down(outer, widths[level])
        self.downnorm = nn.BatchNorm2d(widths[level])
        if not self.innermost:
            self.submodule = _ConditionedBlock(widths, level + 1, num_condition)
        inner = widths[level] + (num_condition if self.innermost else widths[level])
        self.upsample = _upsample()
        self.upconv = _up(inner, outer, bias=self.outermost)
        if not self.outermost:
            self.upnorm = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = self.downconv(x if self.outermost else F.leaky_relu(x, 0.2))
        if self.innermost:
            y = _append_everywhere(y, condition)
        else:
            y = self.submodule(y if self.outermost else self.downnorm(y), condition)
        y = self.upconv(self.upsample(F.relu(y)))
        return y if self.outermost else torch.cat([x, self.upnorm(y)], dim=1)


def _append_everywhere(image: Tensor, vector: Tensor) -> Tensor:
    tiled = vector[:, :, None, None].expand(-1, -1, *image.shape[2:])
    return torch.cat([image, tiled], dim=1)


class _UNet(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        widths, size = level_widths(config), config.num_channels
        num_in = 1 + size if config.fusion == "early" else 1
        self.bn0 = nn.BatchNorm2d(num_in)
        if config.fusion == "middle":
            self.unet_block: nn.Module = _ConditionedBlock(widths, 0, size)
        else:
            self.unet_block = _blocks(widths, num_in, size if config.fusion == "late" else 1)

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        return self.unet_block(self.bn0(x), *condition)


class _InnerProduct(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, vectors: Tensor, features: Tensor) -> Tensor:
        return torch.einsum("bpc,bckt->bpkt", vectors * self.scale, features) + self.bias


class TorchCLIPSep(nn.Module):
    """The PyTorch twin of `clipsep_jax.models.clipsep.CLIPSep`, initialised alike."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, size = config, config.num_channels
        self.sound_net = _UNet(config)
        if config.num_labels:
            self.label_net = nn.Embedding(config.num_labels, config.query_size)
        if config.num_learned_queries:
            self.synth_net: nn.Module = nn.Conv2d(size, config.num_learned_queries, kernel_size=1)
        else:
            head = nn.Linear(config.query_size, size)
            self.frame_net = nn.ModuleDict({"fc": head}) if config.fusion == "early" else head
            if config.fusion != "early":  # without use in middle fusion
                self.synth_net = _InnerProduct(size)
        if config.num_noise_heads:
            self.pit_nets = nn.ModuleList([nn.Linear(size, size) for _ in range(config.num_noise_heads)])
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, self.config.init_std)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 1e-4)

    def forward(self, log_magnitude: Tensor, query: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Mask logits of the queries [B N K T] and of the noise heads [B M K T], if there are any.

        Args:
            log_magnitude: log of the warped mixture magnitude, [B K T].
            query: embeddings [B N Q], numbers of labels [B N], or None where the queries are learned.
        """
        image = log_magnitude[:, None]
        if query is None:
            return self.synth_net(self.sound_net(image)), None
        projected = self._projected(query)
        if self.config.fusion != "late":
            return torch.cat([self._conditioned(image, torch.sigmoid(x)) for x in projected.unbind(dim=1)], dim=1), None
        features = self.sound_net(image)
        logits = self.synth_net(torch.sigmoid(projected), features)
        if not self.config.num_noise_heads:
            return logits, None
        noise = torch.stack([net(projected.mean(dim=1)) for net in self.pit_nets], dim=1)
        return logits, self.synth_net(torch.sigmoid(noise), features)

    def _projected(self, query: Tensor) -> Tensor:
        embedding = self.label_net(query) if self.config.num_labels else query
        head = self.frame_net["fc"] if isinstance(self.frame_net, nn.ModuleDict) else self.frame_net
        return head(embedding)

    def _conditioned(self, image: Tensor, vector: Tensor) -> Tensor:
        if self.config.fusion == "early":
            return self.sound_net(_append_everywhere(image, vector))
        return self.sound_net(image, vector)
