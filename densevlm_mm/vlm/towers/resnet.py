"""OpenAI's ResNets on open_clip's ModifiedResNet: convolutions, then one attention pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from open_clip import CLIPVisionCfg
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.func import functional_call

from ..positions import resize_position_embedding
from .base import VisionTower, check_known_keys, to_map
from .openai import KNOWN_KEYS


class ResNetTower(VisionTower):
    """CLIP's ResNet (Radford et al., arXiv:2103.00020); its blocks are the four stages.

    The dense mode 'value' is the attention pool at every cell as if it attended to that cell alone: positions, value
    and output projection (MaskCLIP, CLIPSelf). Batch norms keep their statistics and weights, whatever trains.

    Args:
        embed_dim: Channels of the image-text space.
        vision_cfg: ``vision_cfg`` of open_clip's JSON model configs, ``layers`` a list of four.

    Raises:
        ValueError: For a key that is not in that schema.
    """

    patch_size = (32, 32)

    def __init__(self, embed_dim: int, vision_cfg: Mapping) -> None:
        super().__init__()
        check_known_keys(vision_cfg, KNOWN_KEYS, 'vision_cfg of a ResNet')
        cfg = CLIPVisionCfg(**vision_cfg)
        if not isinstance(cfg.image_size, int) or cfg.image_size % 32:
            raise ValueError(f'vision_cfg.image_size of a ResNet must be a multiple of 32, got {cfg.image_size}')
        self.embed_dim = embed_dim
        self.image_size = (cfg.image_size, cfg.image_size)
        self.block_channels = [cfg.width * 4 * 2**stage for stage in range(4)]
        self.block_strides = [(4 * 2**stage,) * 2 for stage in range(4)]
        self.trunk = ModifiedResNet(
            layers=cfg.layers,
            output_dim=embed_dim,
            heads=cfg.width * 32 // cfg.head_width,
            image_size=cfg.image_size,
            width=cfg.width,
        )

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [self.trunk.layer1, self.trunk.layer2, self.trunk.layer3, self.trunk.layer4]

    def stem(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        # the padded first convolution would make a cell of an odd last row; all other strides drop what is left over
        return self.trunk.stem(images[..., : height - height % 2, : width - width % 2])

    def run_block(self, index: int, state: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.blocks[index](state)

    def runs_as_trained(self, mode: str | None) -> bool:
        return True

    def as_map(self, state: Tensor, grid: tuple[int, int]) -> Tensor:
        return state

    def pool(self, state: Tensor) -> Tensor:
        return functional_call(self.trunk.attnpool, {'positional_embedding': self._positions(state)}, (state,))

    def dense_map(self, state: Tensor, grid: tuple[int, int]) -> Tensor:
        pool = self.trunk.attnpool
        cells = state.flatten(2).transpose(1, 2) + self._positions(state)[1:]
        return to_map(pool.c_proj(pool.v_proj(cells)), grid)

    def _positions(self, state: Tensor) -> Tensor:
        """Position embedding ``(1 + h * w, width)`` of the pool, that of the mean first."""
        native = tuple(side // 32 for side in self.image_size)
        return resize_position_embedding(self.trunk.attnpool.positional_embedding[None], state.shape[-2:], native)[0]

    def stem_parameters(self) -> Iterator[nn.Parameter]:
        for convolution in (self.trunk.conv1, self.trunk.conv2, self.trunk.conv3):
            yield from convolution.parameters()

    def set_trainable(self, blocks: int, mode: str = 'value', letters: str = '') -> None:
        super().set_trainable(blocks, mode, letters)
        for module in self._batch_norms():
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> ResNetTower:
        super().train(mode)
        for module in self._batch_norms():
            module.train(False)
        return self

    def _batch_norms(self) -> list[nn.BatchNorm2d]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]

    @staticmethod
    def rename_key(key: str) -> str | None:
        return key if key.startswith('trunk.') else 'trunk.' + key
