"""OpenAI-style vision transformers on open_clip's VisionTransformer, QuickGELU or GELU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial

import torch
import torch.nn.functional as F
from open_clip import CLIPVisionCfg
from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from ..positions import resize_position_embedding
from .base import VisionTower, check_known_keys
from .self_correlation import self_correlation

_KNOWN = {f.name for f in fields(CLIPVisionCfg)}
# Parts of open_clip's schema that change how tokens are made or pooled and have no dense path here.
_UNSUPPORTED = (
    'attentional_pool', 'no_ln_pre', 'final_ln_after_pool', 'block_type', 'qk_norm', 'scaled_cosine_attn',
    'scale_heads', 'scale_attn_inner', 'scale_attn', 'scale_fc', 'timm_model_name', 'patch_dropout',
)  # fmt: skip


class OpenAITower(VisionTower):
    """CLIP's ViT (Radford et al., arXiv:2103.00020) with a class token and a final projection matrix.

    Dense modes: 'vanilla' is the ordinary last block; 'value' drops its attention and keeps residual and MLP
    (DenseVLM); 'clearclip' correlates queries with themselves and has neither (ClearCLIP, ECCV 2024); 'sclip' adds the
    correlations of queries and of keys and has both (SCLIP, ECCV 2024).

    Args:
        embed_dim: Channels of the image-text space.
        vision_cfg: ``vision_cfg`` of open_clip's JSON model configs.
        quick_gelu: Whether the weights were trained with ``x * sigmoid(1.702 x)``.

    Raises:
        ValueError: For a key that is not in that schema, or a variant without this dense path.
    """

    dense_modes = ('value', 'vanilla', 'clearclip', 'sclip')

    def __init__(self, embed_dim: int, vision_cfg: Mapping, *, quick_gelu: bool) -> None:
        super().__init__()
        check_known_keys(vision_cfg, _KNOWN, 'vision_cfg of an OpenAI-style tower')
        cfg = CLIPVisionCfg(**vision_cfg)
        used = [key for key in _UNSUPPORTED if getattr(cfg, key)]
        if used or cfg.pool_type != 'tok' or cfg.pos_embed_type != 'learnable':
            used = used or [f'pool_type={cfg.pool_type}', f'pos_embed_type={cfg.pos_embed_type}']
            raise ValueError(f'no dense path is defined for ViTs with {used}; use a CLIP ViT with a class token')
        act = partial(QuickGELU if quick_gelu else nn.GELU, **(cfg.act_kwargs or {}))
        self.embed_dim = embed_dim
        self.width = cfg.width
        self.trunk = VisionTransformer(
            image_size=cfg.image_size,
            patch_size=cfg.patch_size,
            width=cfg.width,
            layers=cfg.layers,
            heads=cfg.width // cfg.head_width,
            mlp_ratio=cfg.mlp_ratio,
            ls_init_value=cfg.ls_init_value,
            output_dim=embed_dim,
            act_layer=act,
            norm_layer=partial(LayerNorm, **(cfg.norm_kwargs or {})),
        )
        self.image_size, self.patch_size = tuple(self.trunk.image_size), tuple(self.trunk.patch_size)

    @property
    def blocks(self) -> Sequence[ResidualAttentionBlock]:
        return self.trunk.transformer.resblocks

    def stem(self, images: Tensor) -> Tensor:
        patches = self.trunk.conv1(images)
        class_token = self.trunk.class_embedding.expand(len(images), 1, -1)
        tokens = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], 1)
        table = self.trunk.positional_embedding[None]
        positions = resize_position_embedding(table, tuple(patches.shape[-2:]), self.trunk.grid_size)
        return self.trunk.ln_pre(tokens + positions)

    def run_block(self, index: int, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.blocks[index](tokens)

    def run_last_block(self, tokens: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
        block = self.blocks[-1]
        mixed = block.ls_1(block.attn.out_proj(self._mix(block.attn, block.ln_1(tokens), mode)))
        if mode == 'clearclip':
            return mixed
        tokens = tokens + mixed
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))

    def _mix(self, attention: nn.MultiheadAttention, tokens: Tensor, mode: str) -> Tensor:
        # the fused projection holds queries, keys and values, in this order
        weights = dict(zip('qkv', attention.in_proj_weight.split(self.width), strict=True))
        biases = dict(zip('qkv', attention.in_proj_bias.split(self.width), strict=True))
        if mode == 'value':
            return F.linear(tokens, weights['v'], biases['v'])
        maps = ('q',) if mode == 'clearclip' else ('q', 'k')
        heads = {
            name: F.linear(tokens, weights[name], biases[name]).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for name in {*maps, 'v'}
        }
        mixed = self_correlation(heads, maps, scale=attention.head_dim**-0.5)
        return mixed.transpose(1, 2).flatten(2)

    def project(self, tokens: Tensor) -> Tensor:
        return self.trunk.ln_post(tokens) @ self.trunk.proj

    def pool(self, tokens: Tensor) -> Tensor:
        return self.project(tokens[:, 0])

    def unused_parameters(self, mode: str) -> Iterator[nn.Parameter]:
        if mode == 'clearclip':
            yield from self.blocks[-1].ln_2.parameters()
            yield from self.blocks[-1].mlp.parameters()
            yield from self.blocks[-1].ls_2.parameters()

    def stem_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.trunk.conv1.parameters()
        yield from self.trunk.ln_pre.parameters()
        yield self.trunk.class_embedding
        yield self.trunk.positional_embedding

    @staticmethod
    def rename_key(key: str) -> str | None:
        return key if key.startswith('trunk.') else 'trunk.' + key
