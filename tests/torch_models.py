"""The published networks in PyTorch, of any size, with the keys of the published files."""

import functools

import torch
from torch import nn

from mmcl_jax.bench.peer import import_models

Block, resnets = import_models()


class PatchEmbed(nn.Module):
    def __init__(self, width, patch):
        super().__init__()
        self.proj = nn.Conv2d(1, width, patch, stride=patch)

    def forward(self, ecg):
        return self.proj(ecg[:, None]).flatten(2).transpose(1, 2)


class Signal(nn.Module):
    """ECG encoder; `parts` are those of norm, fc_norm, attention_pool and head that it has."""

    def __init__(
        self, width, depth, heads, patch=(1, 100), leads=12, samples=2500, parts=("norm",)
    ):
        super().__init__()
        self.tokens = leads // patch[0] * (samples // patch[1])
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + self.tokens, width))
        self.patch_embed = PatchEmbed(width, patch)
        self.blocks = blocks(width, depth, heads)
        made = {
            "norm": lambda: nn.LayerNorm(width, eps=1e-6),
            "fc_norm": lambda: nn.LayerNorm(width, eps=1e-6),
            "attention_pool": lambda: nn.MultiheadAttention(width, heads, batch_first=True),
            "head": lambda: nn.Linear(width, 2),
        }
        for name in parts:
            setattr(self, name, made[name]())
        shake(self)

    def forward(self, ecg, visible=None):
        """Tokens after the last block, CLS first."""
        tokens = self.patch_embed(ecg) + self.pos_embed[:, 1:]
        if visible is not None:
            tokens = tokens.gather(1, visible[:, :, None].expand(-1, -1, tokens.shape[-1]))
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(ecg), -1, -1)
        return self.blocks(torch.cat([first, tokens], dim=1))

    def pool(self, ecg):
        """Features by attention over the patch tokens."""
        patches = self(ecg)[:, 1:]
        query = patches.mean(dim=1, keepdim=True)
        return self.fc_norm(self.attention_pool(query, patches, patches)[0][:, 0])


class Masked(Signal):
    """Masked autoencoder."""

    def __init__(self, width, depth, heads, decoder, **options):
        super().__init__(width, depth, heads, **options)
        inner, layers, decoder_heads = decoder
        samples = self.patch_embed.proj.kernel_size[0] * self.patch_embed.proj.kernel_size[1]
        self.mask_token = nn.Parameter(torch.randn(1, 1, inner))
        self.decoder_pos_embed = nn.Parameter(torch.randn(1, 1 + self.tokens, inner))
        self.decoder_embed = nn.Linear(width, inner)
        self.decoder_blocks = blocks(inner, layers, decoder_heads)
        self.decoder_norm = nn.LayerNorm(inner, eps=1e-6)
        self.decoder_pred = nn.Linear(inner, samples)
        # The similarity term of later versions.
        self.projector = nn.Sequential(nn.Linear(width, 8, bias=False), nn.BatchNorm1d(8))
        shake(self)

    def reconstruct(self, ecg, visible, restore):
        """Samples of every patch."""
        latent = self.decoder_embed(self.norm(self(ecg, visible)))
        hidden = self.mask_token.expand(len(ecg), self.tokens + 1 - latent.shape[1], -1)
        tokens = torch.cat([latent[:, 1:], hidden], dim=1)
        tokens = tokens.gather(1, restore[:, :, None].expand(-1, -1, tokens.shape[-1]))
        tokens = torch.cat([latent[:, :1], tokens], dim=1) + self.decoder_pos_embed
        return self.decoder_pred(self.decoder_norm(self.decoder_blocks(tokens)))[:, 1:]


class Projector(nn.Module):
    def __init__(self, inputs, hidden, out):
        super().__init__()
        layers = (nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, out))
        self.layers = nn.Sequential(*layers)


class Contrastive(nn.Module):
    """What the contrastive stage trains, under the names of its Lightning module."""

    def __init__(self, resnet, signal, width):
        super().__init__()
        self.encoder_imaging = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head_imaging = Projector(resnet.fc.in_features, 16, 8)
        self.encoder_ecg = signal
        self.projection_head_ecg = Projector(width, 16, 8)
        self.classifier = nn.Linear(width, 2)


def blocks(width, depth, heads):
    norm = functools.partial(nn.LayerNorm, eps=1e-6)
    made = (Block(width, heads, 4.0, qkv_bias=True, norm_layer=norm) for _ in range(depth))
    return nn.Sequential(*made)


def shake(module):
    """Moves every parameter and running statistic off its initial value."""
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("running_var"):
                tensor.add_(torch.rand_like(tensor))
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
            else:
                tensor.add_(7)
    return module.eval()
