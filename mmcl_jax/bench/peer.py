"""The same models and steps in PyTorch: timm's ViT blocks and torchvision's ResNet50.

Masking embeds every patch and then drops the hidden ones, as the authors' code does. A step does
not augment: the authors do that in the workers of the data loader. Inputs are on the device.
"""

import functools
import sys
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mmcl_jax.bench import settings


def import_models():
    """`timm.models.vision_transformer.Block` and `torchvision.models.resnet`.

    A torchvision built for CUDA does not find its own operators beside a PyTorch for CPUs, and
    fails to import. No model here uses them, so two of them are declared without implementation.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or torch.cuda.is_available():
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        inputs = "Tensor dets, Tensor scores, float iou_threshold"
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", f"({inputs}) -> Tensor")
    from timm.models.vision_transformer import Block
    from torchvision.models import resnet

    return Block, resnet


class Encoder(nn.Module):
    """ECG encoder with the fields of `mmcl_jax.models.vit`."""

    def __init__(self, spec: dict[str, Any]):
        super().__init__()
        width, self.pool = spec["width"], spec["pool"]
        tokens = 12 * spec["samples"] // spec["patch"][1]
        self.patch_embed = nn.Conv2d(1, width, spec["patch"], stride=spec["patch"])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + tokens, width))
        self.blocks = _blocks(width, spec["depth"], spec["heads"], spec["drop_path"])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        if self.pool == "attention":
            self.attention_pool = nn.MultiheadAttention(width, spec["heads"], batch_first=True)

    def forward(self, ecg, keep: int | None = None):
        """Features, or with `keep` (latent tokens, restore) of that many random patches."""
        tokens = self.patch_embed(ecg[:, None]).flatten(2).transpose(1, 2)
        tokens = tokens + self.pos_embed[:, 1:]
        restore = None
        if keep is not None:
            noise = torch.rand(tokens.shape[:2], device=tokens.device)
            order = noise.argsort(dim=1)
            restore = order.argsort(dim=1)
            visible = order[:, :keep, None].expand(-1, -1, tokens.shape[-1])
            tokens = tokens.gather(1, visible)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(ecg), -1, -1)
        tokens = self.blocks(torch.cat([first, tokens], dim=1))
        if self.pool == "none":
            return self.norm(tokens), restore
        patches = tokens[:, 1:]
        pooled = patches.mean(dim=1, keepdim=True)
        if self.pool == "attention":
            pooled, _ = self.attention_pool(pooled, patches, patches, need_weights=False)
        return self.norm(pooled[:, 0])


class Masked(nn.Module):
    """Masked autoencoder; the loss is over all patches, as in the paper."""

    def __init__(self, towers: dict[str, Any], mask_ratio: float):
        super().__init__()
        encoder, spec = towers["ecg_encoder"], towers["decoder"]
        self.length = spec["patch"][1]
        tokens = 12 * spec["samples"] // self.length
        self.keep = round(tokens * (1 - mask_ratio))
        self.encoder = Encoder(encoder)
        self.embed = nn.Linear(encoder["width"], spec["width"])
        self.mask_token = nn.Parameter(torch.zeros(1, 1, spec["width"]))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + tokens, spec["width"]))
        self.blocks = _blocks(spec["width"], spec["depth"], spec["heads"], 0.0)
        self.norm = nn.LayerNorm(spec["width"], eps=1e-6)
        self.predict = nn.Linear(spec["width"], self.length)
        # The tables of positions are not trained.
        self.pos_embed.requires_grad_(False)
        self.encoder.pos_embed.requires_grad_(False)

    def forward(self, batch):
        ecg = batch["ecg"]
        latent, restore = self.encoder(ecg, self.keep)
        tokens = self.embed(latent)
        hidden = self.mask_token.expand(len(ecg), restore.shape[1] - self.keep, -1)
        patches = torch.cat([tokens[:, 1:], hidden.to(tokens.dtype)], dim=1)
        patches = patches.gather(1, restore[:, :, None].expand(-1, -1, tokens.shape[2]))
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.pos_embed
        prediction = self.predict(self.norm(self.blocks(tokens)))[:, 1:]
        return F.mse_loss(prediction.float(), ecg.reshape(len(ecg), -1, self.length))


class Supervised(nn.Module):
    """Encoder and linear head of two classes."""

    def __init__(self, towers: dict[str, Any], label_smoothing: float):
        super().__init__()
        self.encoder = Encoder(towers["ecg_encoder"])
        self.head = nn.Linear(towers["ecg_encoder"]["width"], 2)
        self.label_smoothing = label_smoothing

    def forward(self, batch):
        logits = self.head(self.encoder(batch["ecg"]))
        return F.cross_entropy(logits, batch["labels"], label_smoothing=self.label_smoothing)


class Clip(nn.Module):
    """Two encoders, two projectors, CLIP loss."""

    def __init__(self, towers: dict[str, Any], temperature: float, cmr_weight: float):
        super().__init__()
        _, resnet = import_models()
        spec = towers["cmr_encoder"]
        if spec["width"] != 64:
            raise ValueError(f"torchvision's ResNet is 64 wide, not {spec['width']}")
        self.ecg_encoder = Encoder(towers["ecg_encoder"])
        self.cmr_encoder = {18: resnet.resnet18, 50: resnet.resnet50}[spec["depth"]]()
        features = self.cmr_encoder.fc.in_features
        self.cmr_encoder.fc = nn.Identity()
        self.ecg_projector = _projector(towers["ecg_encoder"]["width"], towers["ecg_projector"])
        self.cmr_projector = _projector(features, towers["cmr_projector"])
        self.temperature, self.cmr_weight = temperature, cmr_weight

    def forward(self, batch):
        ecg = F.normalize(self.ecg_projector(self.ecg_encoder(batch["ecg"])).float(), dim=-1)
        cmr = F.normalize(self.cmr_projector(self.cmr_encoder(batch["cmr"])).float(), dim=-1)
        logits = ecg @ cmr.T / self.temperature
        own = torch.arange(len(logits), device=logits.device)
        ecg_loss, cmr_loss = F.cross_entropy(logits, own), F.cross_entropy(logits.T, own)
        return (1 - self.cmr_weight) * ecg_loss + self.cmr_weight * cmr_loss


class Runner:
    """A step of one mode, 'eager' or 'compiled', on the GPU if there is one.

    `peak_bytes` is known after `warm_up`, on a GPU.

    On a GPU images and ResNet are in channels-last layout; bfloat16 is autocast over float32
    parameters.
    """

    def __init__(
        self, name: str, spec: dict[str, Any], batch_size: int, mode: str, dtype: str = "float32"
    ):
        cuda = torch.cuda.is_available()
        self._held_before = torch.cuda.memory_allocated() if cuda else 0
        self.peak_bytes: int | None = None
        self._device = torch.device("cuda" if cuda else "cpu")
        # JAX multiplies float32 in TF32 on such GPUs too.
        torch.set_float32_matmul_precision("high")
        torch.manual_seed(0)
        model = build(name, spec).to(self._device)
        if cuda and hasattr(model, "cmr_encoder"):
            model.cmr_encoder.to(memory_format=torch.channels_last)
            # XLA tries its convolutions too.
            torch.backends.cudnn.benchmark = True
        self._training = name != "embed"
        model.train(self._training)
        self._batch = inputs(name, spec, batch_size, self._device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.1)
        self._autocast = functools.partial(
            torch.autocast, self._device.type, torch.bfloat16, enabled=dtype == "bfloat16"
        )
        if not self._training:
            self._batch = self._batch["ecg"]
        self._model = torch.compile(model) if mode == "compiled" else model

    def run(self, count: int) -> None:
        """Does `count` steps and waits for the last one."""
        for _ in range(count):
            self._step() if self._training else self._embed()
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def warm_up(self) -> None:
        """Compiles, and on a GPU notes in `peak_bytes` what the first steps needed at most."""
        cuda = self._device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        self.run(2)
        if cuda:
            self.peak_bytes = torch.cuda.max_memory_allocated() - self._held_before

    def _step(self) -> None:
        with self._autocast():
            loss = self._model(self._batch)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _embed(self) -> None:
        with torch.inference_mode(), self._autocast():
            self._model(self._batch)


def build(name: str, spec: dict[str, Any]) -> nn.Module:
    """The model of a step, with the layer sizes of `spec`."""
    towers, chosen = spec["towers"], spec["settings"]
    if name == "mdm":
        return Masked(towers, chosen["mask_ratio"])
    if name == "finetune":
        return Supervised(towers, chosen["label_smoothing"])
    if name == "mmcl":
        return Clip(towers, chosen["temperature"], chosen["cmr_weight"])
    return Encoder(towers["ecg_encoder"])


def inputs(name: str, spec: dict[str, Any], batch_size: int, device) -> dict[str, torch.Tensor]:
    """What the model of a step sees, already cropped and scaled."""
    leads = settings.RECORD["full"]["ecg"][0]
    batch = {"ecg": torch.randn(batch_size, leads, spec["ecg_view"]["length"], device=device)}
    if name == "finetune":
        batch["labels"] = torch.arange(batch_size, device=device) % 2
    if name == "mmcl":
        size = spec["cmr_view"]["size"]
        batch["cmr"] = torch.rand(batch_size, 3, size, size, device=device)
        if device.type == "cuda":
            batch["cmr"] = batch["cmr"].contiguous(memory_format=torch.channels_last)
    return batch


def _blocks(width: int, depth: int, heads: int, drop_path: float) -> nn.Sequential:
    block, _ = import_models()
    norm = functools.partial(nn.LayerNorm, eps=1e-6)
    rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
    return nn.Sequential(
        *(block(width, heads, 4.0, qkv_bias=True, drop_path=r, norm_layer=norm) for r in rates)
    )


def _projector(inputs: int, spec: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, spec["hidden"]), nn.ReLU(), nn.Linear(spec["hidden"], spec["out"])
    )
