"""SigLIP's and other vision transformers on timm's VisionTransformer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..positions import resize_position_embedding
from .base import no_dense_path
from .patches import embed_patches
from .timm_trunk import build_timm_model
from .transformer import TransformerTower

SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)


class TimmViTTower(TransformerTower):
    """timm's ViT: SigLIP (Zhai et al., arXiv:2303.15343), which pools by attention, or a class token or average.

    Dense modes: with a pooling head, 'value' runs all blocks as trained and is what the head would give for each patch
    if it attended to that patch alone: value, output projection, residual MLP. It is the only mode, since that head,
    not the last block, is where the image embedding is gathered. With a class token or average pooling, 'value' and
    'vanilla' are those of `OpenAITower`.

    Args:
        embed_dim: Channels of the image-text space.
        vision_cfg: ``vision_cfg`` of open_clip's JSON model configs.

    Raises:
        ValueError: For a key that is not in that schema, or a variant without this dense path.
    """

    def __init__(self, embed_dim: int, vision_cfg: Mapping) -> None:
        super().__init__()
        model = build_timm_model(embed_dim, vision_cfg)
        self.trunk, self.head = model.trunk, model.head
        if self.trunk.global_pool not in ('map', 'token', 'avg') or not self._is_plain():
            name = vision_cfg['timm_model_name']
            raise no_dense_path(name, 'whose patches, attention or pooling are not those of a plain ViT')
        if self.trunk.patch_embed.img_size != tuple(model.image_size):
            model.set_input_size(model.image_size)
        self.embed_dim = embed_dim
        self.width = self.trunk.embed_dim
        self.num_prefix = self.trunk.num_prefix_tokens
        self.image_size, self.patch_size = tuple(model.image_size), tuple(self.trunk.patch_embed.patch_size)
        if self.trunk.attn_pool is not None:
            self.dense_modes = ('value',)
            self.mean, self.std = SIGLIP_MEAN, SIGLIP_STD

    @property
    def blocks(self) -> Sequence[Block]:
        return self.trunk.blocks

    def stem(self, images: Tensor) -> Tensor:
        trunk = self.trunk
        patches = embed_patches(trunk.patch_embed.proj, images)
        tokens = trunk.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        prefix = [
            token.expand(len(images), -1, -1) for token in (trunk.cls_token, trunk.reg_token) if token is not None
        ]
        grid, native = tuple(patches.shape[-2:]), trunk.patch_embed.grid_size
        if trunk.no_embed_class:
            positions = resize_position_embedding(trunk.pos_embed, grid, native, num_prefix=0)
            tokens = torch.cat([*prefix, tokens + positions], 1)
        else:
            positions = resize_position_embedding(trunk.pos_embed, grid, native, num_prefix=self.num_prefix)
            tokens = torch.cat([*prefix, tokens], 1) + positions
        return trunk.norm_pre(tokens)

    def run_block(self, index: int, state: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.blocks[index](state)

    def run_last_block(self, state: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
        block = self.blocks[-1]
        value = self.projections(state, 'v')['v']
        tokens = state + block.drop_path1(block.ls1(block.attn.proj(block.attn.norm(value))))
        return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))

    def runs_as_trained(self, mode: str | None) -> bool:
        return self.trunk.attn_pool is not None or super().runs_as_trained(mode)

    def projections(self, tokens: Tensor, letters: str) -> dict[str, Tensor]:
        block = self.blocks[-1]
        projected = dict(zip('qkv', block.attn.qkv(block.norm1(tokens)).chunk(3, -1), strict=True))
        return {letter: projected[letter] for letter in letters}

    def project(self, tokens: Tensor) -> Tensor:
        trunk = self.trunk
        tokens = trunk.norm(tokens)
        if trunk.attn_pool is not None:
            tokens = self._attend_alone(tokens)
        return self.head(trunk.head(trunk.head_drop(trunk.fc_norm(tokens))))

    def _attend_alone(self, tokens: Tensor) -> Tensor:
        """Output of the pooling head ``(B, L, width)`` for each token by itself."""
        pool = self.trunk.attn_pool
        # the fused projection holds keys and values, in this order; the latent query plays no part
        tokens = F.linear(tokens, pool.kv.weight[self.width :], pool.kv.bias[self.width :])
        tokens = pool.proj_drop(pool.proj(tokens))
        return tokens + pool.mlp(pool.norm(tokens))

    def pool(self, state: Tensor) -> Tensor:
        return self.head(self.trunk.forward_head(self.trunk.norm(state)))

    def stem_parameters(self) -> Iterator[nn.Parameter]:
        trunk = self.trunk
        yield from trunk.patch_embed.parameters()
        yield from trunk.norm_pre.parameters()
        yield from (token for token in (trunk.cls_token, trunk.reg_token, trunk.pos_embed) if token is not None)

    def _is_plain(self) -> bool:
        """Whether patches and attention are those that this file takes apart."""
        block, attention = self.trunk.blocks[-1], self.trunk.blocks[-1].attn
        return (
            type(self.trunk.patch_embed) is PatchEmbed
            and self.trunk.pos_embed is not None
            and type(block) is Block
            and type(attention) is Attention
            and isinstance(attention.q_norm, nn.Identity)
            and attention.gate is None
        )
