"""EVA-02-CLIP vision towers on timm's Eva: rotary positions, SwiGLU, inner attention norm."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from timm.layers import to_2tuple
from timm.models.eva import Eva
from torch import Tensor, nn

from ..positions import resize_position_embedding, token_rotations
from .base import check_known_keys
from .norms import FoldedNorm, ProductNorm, pad_to_alignment
from .patches import embed_patches
from .rotary_attention import RotaryAttention
from .self_correlation import SELF_CORRELATIONS, self_correlation
from .transformer import TransformerTower

# Switches of EVA-CLIP's model configs that EVA-02-CLIP has on, and what leaving one out means.
_SWITCHES = {'rope': False, 'naiveswiglu': False, 'subln': False, 'intp_freq': True}
_KNOWN = {
    'image_size', 'layers', 'width', 'head_width', 'patch_size', 'mlp_ratio', 'eva_model_name', 'drop_path_rate',
    'xattn', 'fusedLN', 'pt_hw_seq_len', *_SWITCHES,
}  # fmt: skip

# EVA-CLIP's name of a parameter inside a block -> timm's
RENAMED = {
    'attn.q_bias': 'attn.q_proj.bias',
    'attn.v_bias': 'attn.v_proj.bias',
    'attn.inner_attn_ln': 'attn.norm',
    'mlp.w1': 'mlp.fc1_g',
    'mlp.w2': 'mlp.fc1_x',
    'mlp.ffn_ln': 'mlp.norm',
    'mlp.w3': 'mlp.fc2',
}


class EvaTower(TransformerTower):
    """EVA-02-CLIP ViT (Sun et al., EVA-CLIP, arXiv:2303.15389).

    Dense modes: 'vanilla' is the ordinary last block; 'value' drops its attention and keeps residual and MLP (MaskCLIP,
    CLIPSelf, DenseVLM); 'qq', 'kk', 'vv', 'csa' (qq + kk) and 'all' correlate features with themselves, unscaled and
    without rotary positions, and have neither residual nor MLP (DeCLIP, CVPR 2025).

    Args:
        embed_dim: Channels of the image-text space.
        vision_cfg: ``vision_cfg`` of EVA-CLIP's JSON model configs.

    Raises:
        ValueError: For a key that is not in that schema, or a variant other than EVA-02-CLIP.
    """

    dense_modes = ('value', 'vanilla', *SELF_CORRELATIONS)

    def __init__(self, embed_dim: int, vision_cfg: Mapping) -> None:
        super().__init__()
        check_known_keys(vision_cfg, _KNOWN, 'vision_cfg of an EVA tower')
        off = [key for key, default in _SWITCHES.items() if not vision_cfg.get(key, default)]
        if off:
            raise ValueError(f'vision_cfg must switch on {off}: only EVA-02-CLIP towers are supported')
        self.embed_dim = embed_dim
        self.width = vision_cfg['width']
        self.image_size = to_2tuple(vision_cfg['image_size'])
        self.patch_size = to_2tuple(vision_cfg['patch_size'])
        self.head_dim = vision_cfg.get('head_width', 64)
        if self.width % self.head_dim:
            raise ValueError(f'vision_cfg.width {self.width} is no multiple of head_width {self.head_dim}')
        self.rope_span = vision_cfg.get('pt_hw_seq_len', 16)
        self.trunk = Eva(
            img_size=self.image_size,
            patch_size=self.patch_size,
            num_classes=embed_dim,
            global_pool='token',
            embed_dim=self.width,
            depth=vision_cfg['layers'],
            num_heads=self.width // self.head_dim,
            qkv_fused=False,
            mlp_ratio=vision_cfg['mlp_ratio'],
            swiglu_mlp=True,
            scale_mlp=True,
            scale_attn_inner=True,
            drop_path_rate=vision_cfg.get('drop_path_rate', 0.0),
            norm_layer=ProductNorm,
            # rotary tables come from `positions`, in fp32 for any grid and dtype
            use_rot_pos_emb=False,
            head_init_scale=1.0,
        )
        for block in self.blocks:
            block.attn.__class__ = RotaryAttention  # timm lets nobody choose, and drew these weights already

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.trunk.blocks

    def stem(self, images: Tensor) -> Tensor:
        patches = embed_patches(self.trunk.patch_embed.proj, images)
        tokens = torch.cat([self.trunk.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        native = self.trunk.patch_embed.grid_size
        return tokens + resize_position_embedding(self.trunk.pos_embed, tuple(patches.shape[-2:]), native)

    def run_block(self, index: int, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.blocks[index](tokens, rope=token_rotations(grid, self.head_dim, self.rope_span, tokens.device))

    def run_last_block(self, tokens: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
        block = self.blocks[-1]
        if mode in SELF_CORRELATIONS:
            return self._correlate(tokens, SELF_CORRELATIONS[mode])
        value = self.projections(tokens, 'v')['v']
        tokens = tokens + block.drop_path1(block.attn.proj(block.attn.norm(value)))
        return tokens + block.drop_path2(block.mlp(block.norm2(tokens)))

    def projections(self, tokens: Tensor, letters: str) -> dict[str, Tensor]:
        block = self.blocks[-1]
        tokens = block.norm1(tokens)
        return {letter: getattr(block.attn, f'{letter}_proj')(tokens) for letter in letters}

    def _correlate(self, tokens: Tensor, maps: Sequence[str]) -> Tensor:
        attention = self.blocks[-1].attn
        heads = {
            letter: features.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for letter, features in self.projections(tokens, ''.join({*''.join(maps), 'v'})).items()
        }
        mixed = self_correlation(heads, maps, scale=1.0)
        return attention.proj(attention.norm(mixed.transpose(1, 2).flatten(2)))

    def project(self, tokens: Tensor) -> Tensor:
        return self.trunk.head(self.trunk.norm(tokens))

    def pool(self, tokens: Tensor) -> Tensor:
        return self.project(tokens[:, 0])

    def fold(self) -> None:
        for block in self.blocks:
            attention, mlp = block.attn, block.mlp
            attention.proj, attention.norm = FoldedNorm(attention.norm, attention.proj), nn.Identity()
            mlp.fc2, mlp.norm = FoldedNorm(mlp.norm, mlp.fc2), nn.Identity()
            for linear in (mlp.fc1_g, mlp.fc1_x):
                for name, parameter in list(linear.named_parameters()):
                    setattr(linear, name, nn.Parameter(pad_to_alignment(parameter.detach(), 0), requires_grad=False))
        self.requires_grad_(False)

    def unused_parameters(self, mode: str, letters: str = '') -> Iterator[nn.Parameter]:
        if mode == 'vanilla':
            return
        block, correlated = self.blocks[-1], ''.join(SELF_CORRELATIONS.get(mode, ()))
        for name in 'qk':
            if name not in correlated + letters:
                yield from getattr(block.attn, f'{name}_proj').parameters()
        if correlated:
            yield from block.norm2.parameters()
            yield from block.mlp.parameters()

    def stem_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.trunk.patch_embed.parameters()
        yield self.trunk.cls_token
        yield self.trunk.pos_embed

    @staticmethod
    def rename_key(key: str) -> str | None:
        if 'rope.freqs_' in key:
            return None
        if key.startswith('trunk.'):
            return key
        block = re.fullmatch(r'(blocks\.\d+\.)(.+?)(\.weight|\.bias)?', key)
        if block:
            prefix, name, leaf = block.groups()
            key = prefix + RENAMED.get(name, name) + (leaf or '')
        return 'trunk.' + key
