"""What CAT-Seg takes from a vision tower: the dense map, and maps of earlier blocks as guidance."""

from __future__ import annotations

from collections.abc import Sequence

from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from densevlm_mm.vlm.towers import OpenAITower, VisionTower


def check_guidance_blocks(tower: VisionTower, indices: Sequence[int]) -> list[int]:
    """Indices counted from 0 of blocks whose maps are as fine as the dense one.

    Raises:
        ValueError: If one does not exist, or its map is not.
    """
    indices = [tower.block_index(index) for index in indices]
    if any(tuple(tower.block_strides[index]) != tuple(tower.patch_size) for index in indices):
        raise ValueError(
            f'{type(tower).__name__} has maps at the guidance blocks {indices} that are not as fine as its dense map: '
            'take a ViT'
        )
    return indices


def check_class_token_residual(tower: VisionTower, mode: str, indices: Sequence[int]) -> None:
    """Raise a ValueError if `run_on_class_token` cannot work on this tower, dense mode or guidance."""
    if not isinstance(tower, OpenAITower) or not isinstance(tower.blocks[-1], ResidualAttentionBlock):
        raise ValueError(f"class_token_residual is of OpenAI's CLIP ViTs, not of {type(tower).__name__}")
    if mode != 'value':
        raise ValueError(f"class_token_residual is of the dense mode 'value', not {mode!r}")
    if len(tower.blocks) - 1 in indices:
        raise ValueError('class_token_residual needs guidance from blocks before the last')


def image_features(
    tower: VisionTower, images: Tensor, mode: str, indices: Sequence[int], *, class_token_residual: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Dense map and maps of blocks, from one pass.

    Args:
        tower: A ViT.
        images: ``(B, 3, H, W)``, normalised.
        mode: Dense mode.
        indices: Blocks whose maps are wanted.
        class_token_residual: See `run_on_class_token`.

    Returns:
        ``(B, C, h, w)``, not normalised, and one ``(B, W, h, w)`` per index.
    """
    if not class_token_residual:
        output = tower.run(images, mode, indices)
        return tower.dense_map(output.state, output.grid), output.maps
    output = tower.run(images, indices=indices, depth=len(tower.blocks) - 1)
    return tower.dense_map(run_on_class_token(tower, output.state), output.grid), output.maps


def run_on_class_token(tower: OpenAITower, state: Tensor) -> Tensor:
    """The last block in dense mode 'value', except that its values are added to the class token, at every position.

    So CAT-Seg's released models were trained (Cho et al., CVPR 2024), rather than with each token's own residual.

    Args:
        tower: OpenAI's ViT.
        state: Tokens ``(B, 1 + L, width)`` before the last block.

    Returns:
        ``(B, 1 + L, width)``.
    """
    block = tower.blocks[-1]
    mixed = block.attn.out_proj(tower.projections(state, 'v')['v'])
    tokens = state[:, :1] + block.ls_1(mixed)
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
