"""What every vision tower offers: image, dense and block features, and which of its blocks train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class TowerOutput:
    """One pass through a tower.

    Attributes:
        tokens: ``(B, 1 + h * w, width)`` after the last block, class token first.
        maps: ``(B, width, h, w)`` for each block asked for, in the order of the request.
        grid: Token ``(h, w)``.
    """

    tokens: Tensor
    maps: list[Tensor]
    grid: tuple[int, int]


class VisionTower(nn.Module):
    """Base of the vision towers: a stem, a list of blocks, a head.

    A family implements the five steps `stem`, `run_block`, `run_last_block`, `project` and `pool`, and says which
    parameters they use; everything else follows.

    Attributes:
        embed_dim: Channels of the shared image-text space.
        width: Channels of the residual stream.
        image_size: Native input ``(H, W)``.
        patch_size: ``(rows, columns)`` of one patch in pixels.
        dense_modes: Names of the dense modes that this family defines.
    """

    embed_dim: int
    width: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    dense_modes: tuple[str, ...] = ('value', 'vanilla')
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks, first to last."""
        raise NotImplementedError

    def stem(self, images: Tensor) -> Tensor:
        """Tokens ``(B, 1 + h * w, width)`` of images ``(B, 3, H, W)``, positions added."""
        raise NotImplementedError

    def run_block(self, index: int, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens after block ``index`` with its ordinary attention."""
        raise NotImplementedError

    def run_last_block(self, tokens: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
        """Tokens after the last block in a dense mode other than 'vanilla'."""
        raise NotImplementedError

    def project(self, tokens: Tensor) -> Tensor:
        """Final norm and projection of every token: ``(B, L, width) -> (B, L, embed_dim)``."""
        raise NotImplementedError

    def pool(self, tokens: Tensor) -> Tensor:
        """Image embedding ``(B, embed_dim)`` of the last block's tokens."""
        raise NotImplementedError

    def unused_parameters(self, mode: str) -> Iterator[nn.Parameter]:
        """Parameters of the blocks that a dense mode never touches; DDP waits in vain for their gradients."""
        return iter(())

    def stem_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of `stem`."""
        raise NotImplementedError

    @staticmethod
    def rename_key(key: str) -> str | None:
        """Our name of a checkpoint's key inside ``visual.``; None for a buffer that is recomputed."""
        return key

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Token grid ``(h, w)`` of images ``(B, 3, H, W)``; what does not fill a patch is dropped at the far edges.

        Raises:
            ValueError: If the images are not of that shape, or smaller than one patch.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f'images must be (B, 3, H, W), got {tuple(images.shape)}')
        grid = images.shape[-2] // self.patch_size[0], images.shape[-1] // self.patch_size[1]
        if min(grid) < 1:
            raise ValueError(f'images of {tuple(images.shape[-2:])} px are smaller than one patch {self.patch_size}')
        return grid

    def check_mode(self, mode: str) -> str:
        """Return ``mode`` or raise a ValueError that names the modes of this family."""
        if mode not in self.dense_modes:
            raise ValueError(f'{type(self).__name__} has no dense mode {mode!r}; it defines {self.dense_modes}')
        return mode

    def run(
        self, images: Tensor, mode: str = 'vanilla', indices: Sequence[int] = (), depth: int | None = None
    ) -> TowerOutput:
        """Pass images through the blocks.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            mode: Dense mode of the last block.
            indices: Blocks, counted from 0, whose patch tokens are wanted as maps. Negative ones count from the end.
            depth: Stop after so many blocks; None runs all.

        Raises:
            ValueError: For an unknown mode, an index out of range or a wrong image shape.
        """
        last = len(self.blocks) - 1
        wanted = [self.block_index(i) for i in indices]
        grid = self.grid_of(images)
        self.check_mode(mode)
        tokens, maps = self.stem(images.to(self.dtype)), {}
        for index in range(last + 1 if depth is None else depth):
            tokens = self._run(index, tokens, grid, mode if index == last else 'vanilla')
            if index in wanted:
                maps[index] = to_map(tokens[:, 1:], grid)
        return TowerOutput(tokens=tokens, maps=[maps[i] for i in wanted], grid=grid)

    def encode_image(self, images: Tensor) -> Tensor:
        """Image embeddings ``(B, embed_dim)`` of images (B, 3, H, W), not normalised."""
        return self.pool(self.run(images).tokens)

    def encode_dense(self, images: Tensor, mode: str = 'value') -> Tensor:
        """Dense embeddings ``(B, embed_dim, h, w)`` of images (B, 3, H, W), not normalised."""
        return self.dense_map(self.run(images, mode))

    def encode_image_and_dense(self, images: Tensor, mode: str = 'value') -> tuple[Tensor, Tensor]:
        """`encode_image` and `encode_dense` from one pass: only the last block runs twice."""
        last = len(self.blocks) - 1
        early = self.run(images, mode, depth=last)
        image, dense = (self._run(last, early.tokens, early.grid, m) for m in ('vanilla', mode))
        return self.pool(image), self.dense_map(TowerOutput(dense, [], early.grid))

    def dense_map(self, output: TowerOutput) -> Tensor:
        """Projected patch tokens of a pass as a map ``(B, embed_dim, h, w)``."""
        return to_map(self.project(output.tokens[:, 1:]), output.grid)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.parameters()).dtype

    def set_trainable(self, blocks: int, mode: str = 'value') -> None:
        """Freeze the tower but its last ``blocks`` blocks.

        Stem, positions, final norm and projection always stay frozen, and so do parameters that ``mode`` leaves
        unused (queries and keys of the last block in 'value'). ``blocks=0`` freezes everything.

        Raises:
            ValueError: If the tower has fewer blocks.
        """
        if not 0 <= blocks <= len(self.blocks):
            raise ValueError(f'trainable blocks must be in 0..{len(self.blocks)}, got {blocks}')
        self.requires_grad_(False)
        for block in self.blocks[len(self.blocks) - blocks :]:
            block.requires_grad_(True)
        for parameter in self.unused_parameters(self.check_mode(mode)):
            parameter.requires_grad_(False)
        self.train(self.training)

    def unfreeze_stem(self) -> None:
        """Let everything before the first block train: patch embedding, class token, positions."""
        for parameter in self.stem_parameters():
            parameter.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> VisionTower:
        """Set training mode; modules whose every parameter is frozen stay in eval mode."""
        super().train(mode)
        for module in self.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                nn.Module.train(module, False)  # the tower itself may be one of them
        return self

    def _run(self, index: int, tokens: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
        if mode == 'vanilla':
            return self.run_block(index, tokens, grid)
        return self.run_last_block(tokens, grid, mode)

    def block_index(self, index: int) -> int:
        """Index counted from 0; negative ones count from the end.

        Raises:
            ValueError: If there is no such block.
        """
        count = len(self.blocks)
        if not -count <= index < count:
            raise ValueError(f'block {index} does not exist; this tower has blocks 0..{count - 1}')
        return index % count


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch tokens ``(B, h * w, C)`` as a map ``(B, C, h, w)`` (a view)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def check_known_keys(config: Mapping, known: set[str], where: str) -> None:
    """Raise a ValueError that names the unknown keys of a config and the known ones."""
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(f'unknown key(s) {unknown} in {where}; known: {sorted(known)}')
