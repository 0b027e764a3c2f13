"""CLIP-ConvNeXt on timm's ConvNeXt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from .base import VisionTower, no_dense_path
from .timm_trunk import build_timm_model


class ConvNeXtTower(VisionTower):
    """ConvNeXt of open_clip (Cherti et al., arXiv:2212.07143); its blocks are the four stages.

    The dense mode 'value' is the head at every cell as if the image were that cell alone: norm, dropout and projection
    (CLIPSelf).

    Args:
        embed_dim: Channels of the image-text space.
        vision_cfg: ``vision_cfg`` of open_clip's JSON model configs.

    Raises:
        ValueError: For a key that is not in that schema, or a pooling other than the average.
    """

    def __init__(self, embed_dim: int, vision_cfg: Mapping) -> None:
        super().__init__()
        model = build_timm_model(embed_dim, vision_cfg)
        if model.trunk.head.global_pool.pool_type != 'avg':
            raise no_dense_path('ConvNeXts that pool by attention', 'which have no head for a single cell')
        self.trunk, self.head = model.trunk, model.head
        self.embed_dim = embed_dim
        self.image_size = tuple(model.image_size)
        self.block_channels = [stage['num_chs'] for stage in self.trunk.feature_info]
        self.block_strides = [(stage['reduction'],) * 2 for stage in self.trunk.feature_info]
        self.patch_size = self.block_strides[-1]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.trunk.stages

    def stem(self, images: Tensor) -> Tensor:
        return self.trunk.stem(images)

    def run_block(self, index: int, state: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.blocks[index](state)

    def runs_as_trained(self, mode: str | None) -> bool:
        return True

    def as_map(self, state: Tensor, grid: tuple[int, int]) -> Tensor:
        return state

    def pool(self, state: Tensor) -> Tensor:
        return self.head(self.trunk.forward_head(self.trunk.norm_pre(state)))

    def dense_map(self, state: Tensor, grid: tuple[int, int]) -> Tensor:
        cells = state.permute(0, 2, 3, 1).flatten(0, 2)[..., None, None]  # each a map of one cell
        return self.pool(cells).unflatten(0, (-1, *grid)).permute(0, 3, 1, 2)

    def stem_parameters(self) -> Iterator[nn.Parameter]:
        return self.trunk.stem.parameters()
