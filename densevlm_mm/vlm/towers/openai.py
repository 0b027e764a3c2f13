"""OpenAI-style vision transformers on open_clip's VisionTransformer, in all its variants but CoCa's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial

import torch
import torch.nn.functional as F
from open_clip import CLIPVisionCfg
from open_clip.transformer import (
    CustomResidualAttentionBlock,
    LayerNorm,
    QuickGELU,
    ResidualAttentionBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from ..positions import resize_position_embedding
from .base import check_known_keys, no_dense_path
from .patches import embed_patches
from .self_correlation import self_correlation
from .transformer import TransformerTower

KNOWN_KEYS = {f.name for f in fields(CLIPVisionCfg)}
# Parts of open_clip's schema without a dense path, and why.
_UNSUPPORTED = {
    'attentional_pool': 'whose queries mix all patches before the projection (CoCa)',
    'patch_dropout': 'which drops patches that the map needs',
    'scaled_cosine_attn': "which open_clip's own forward pass does not run",
}
_SELF_CORRELATIONS = {'clearclip': ('q',), 'sclip': ('q', 'k')}


class OpenAITower(TransformerTower):
    """CLIP's ViT (Radford et al., arXiv:2103.00020): class token or average pooling, then a projection matrix.

    Dense modes: 'vanilla' is the ordinary last block; 'value' drops its attention and keeps residual and MLP
    (DenseVLM); 'clearclip' correlates queries with themselves and has neither (ClearCLIP, ECCV 2024); 'sclip' adds the
    correlations of queries and of keys and has both (SCLIP, ECCV 2024). Final norm and projection then see each patch
    alone, whatever the image embedding pools.

    Args:
        embed_dim: Channels of the image-text space.
        vision_cfg: ``vision_cfg`` of open_clip's JSON model configs.
        quick_gelu: Whether the weights were trained with ``x * sigmoid(1.702 x)``.

    Raises:
        ValueError: For a key that is not in that schema, or a variant without this dense path.
    """

    dense_modes = ('value', 'vanilla', *_SELF_CORRELATIONS)

    def __init__(self, embed_dim: int, vision_cfg: Mapping, *, quick_gelu: bool) -> None:
        super().__init__()
        check_known_keys(vision_cfg, KNOWN_KEYS, 'vision_cfg of an OpenAI-style tower')
        cfg = CLIPVisionCfg(**vision_cfg)
        for key, reason in _UNSUPPORTED.items():
            if getattr(cfg, key):
                raise no_dense_path(f'ViTs with {key}', reason)
        if cfg.pool_type not in ('tok', 'avg'):
            raise no_dense_path(f'ViTs with pool_type={cfg.pool_type!r}', 'which give no image embedding')
        self.embed_dim = embed_dim
        self.width = cfg.width
        self.learnt_positions = cfg.pos_embed_type == 'learnable'
        self.trunk = VisionTransformer(
            image_size=cfg.image_size,
            patch_size=cfg.patch_size,
            width=cfg.width,
            layers=cfg.layers,
            heads=cfg.width // cfg.head_width,
            mlp_ratio=cfg.mlp_ratio,
            ls_init_value=cfg.ls_init_value,
            output_dim=embed_dim,
            no_ln_pre=cfg.no_ln_pre,
            pos_embed_type=cfg.pos_embed_type,
            pool_type=cfg.pool_type,
            final_ln_after_pool=cfg.final_ln_after_pool,
            act_layer=partial(QuickGELU if quick_gelu else nn.GELU, **(cfg.act_kwargs or {})),
            norm_layer=partial(LayerNorm, **(cfg.norm_kwargs or {})),
            block_type=cfg.block_type,
            qk_norm=cfg.qk_norm,
            scale_heads=cfg.scale_heads,
            scale_attn_inner=cfg.scale_attn_inner,
            scale_attn=cfg.scale_attn,
            scale_fc=cfg.scale_fc,
        )
        self.image_size, self.patch_size = tuple(self.trunk.image_size), tuple(self.trunk.patch_size)

    @property
    def blocks(self) -> Sequence[ResidualAttentionBlock | CustomResidualAttentionBlock]:
        return self.trunk.transformer.resblocks

    def stem(self, images: Tensor) -> Tensor:
        patches = embed_patches(self.trunk.conv1, images)
        class_token = self.trunk.class_embedding.expand(len(images), 1, -1)
        tokens = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], 1)
        table = self.trunk.positional_embedding[None]
        positions = resize_position_embedding(table, tuple(patches.shape[-2:]), self.trunk.grid_size)
        return self.trunk.ln_pre(tokens + positions)

    def run_block(self, index: int, state: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.blocks[index](state)

    def run_last_block(self, state: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
        block = self.blocks[-1]
        if mode == 'value':
            mixed = self.projections(state, 'v')['v']
        else:
            mixed = self._correlate(state, _SELF_CORRELATIONS[mode])
        mixed = block.ls_1(self._attention_output(block, mixed))
        if mode == 'clearclip':
            return mixed
        tokens = state + mixed
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))

    def projections(self, tokens: Tensor, letters: str) -> dict[str, Tensor]:
        block = self.blocks[-1]
        attention, tokens = block.attn, block.ln_1(tokens)
        # the fused projection holds queries, keys and values, in this order
        weights = dict(zip('qkv', attention.in_proj_weight.split(self.width), strict=True))
        biases = dict(zip('qkv', attention.in_proj_bias.split(self.width), strict=True))
        features = {letter: F.linear(tokens, weights[letter], biases[letter]) for letter in letters}
        for letter in set(letters) & set(self._head_norms()):
            heads = features[letter].unflatten(-1, (attention.num_heads, -1))
            features[letter] = self._head_norms()[letter](heads).flatten(-2)
        return features

    def _head_norms(self) -> dict[str, nn.Module]:
        """Norms of the last block's queries and keys within each head, if it has them."""
        attention = self.blocks[-1].attn
        return {letter: getattr(attention, f'ln_{letter}') for letter in 'qk' if hasattr(attention, f'ln_{letter}')}

    def _correlate(self, tokens: Tensor, maps: Sequence[str]) -> Tensor:
        attention = self.blocks[-1].attn
        heads = {
            letter: features.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for letter, features in self.projections(tokens, ''.join((*maps, 'v'))).items()
        }
        mixed = self_correlation(heads, maps, scale=attention.head_dim**-0.5)
        return mixed.transpose(1, 2).flatten(2)

    @staticmethod
    def _attention_output(block: nn.Module, mixed: Tensor) -> Tensor:
        """What the attention makes of mixed values ``(B, L, width)``."""
        attention = block.attn
        if not isinstance(block, CustomResidualAttentionBlock):
            return attention.out_proj(mixed)
        if attention.head_scale is not None:
            heads = mixed.unflatten(-1, (attention.num_heads, -1))
            mixed = (heads * attention.head_scale.squeeze(-1)).flatten(-2)
        return block.ln_attn(attention.out_proj(attention.ln_inner(mixed)))

    def project(self, tokens: Tensor) -> Tensor:
        return self.trunk.ln_post(tokens) @ self.trunk.proj

    def pool(self, state: Tensor) -> Tensor:
        if self.trunk.pool_type == 'tok':
            return self.project(state[:, 0])
        patches = state[:, 1:]
        if self.trunk.final_ln_after_pool:
            return self.project(patches.mean(1))
        return self.trunk.ln_post(patches).mean(1) @ self.trunk.proj

    def unused_parameters(self, mode: str, letters: str = '') -> Iterator[nn.Parameter]:
        if mode == 'vanilla':
            return
        block, used = self.blocks[-1], ''.join(_SELF_CORRELATIONS.get(mode, ())) + letters
        for letter, norm in self._head_norms().items():
            if letter not in used:
                yield from norm.parameters()
        if mode == 'clearclip':
            yield from block.ln_2.parameters()
            yield from block.mlp.parameters()
            yield from block.ls_2.parameters()

    def stem_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.trunk.conv1.parameters()
        yield from self.trunk.ln_pre.parameters()
        yield self.trunk.class_embedding
        if self.learnt_positions:
            yield self.trunk.positional_embedding

    @staticmethod
    def rename_key(key: str) -> str | None:
        return key if key.startswith('trunk.') else 'trunk.' + key
