"""What every vision tower offers: image, dense and block features, and which of its blocks train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .compilation import compile_options, has_cuda_graphs
from .rows_apart import set_rows_apart

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
WITH_DENSE_PATH = (
    'EVA02-CLIP-B-16, a ViT such as ViT-B-16, a SigLIP such as ViT-B-16-SigLIP2, a ResNet such as RN50 or a ConvNeXt '
    'such as convnext_base_w'
)


@dataclass
class TowerOutput:
    """One pass through a tower.

    Attributes:
        state: What left the last block that ran: tokens ``(B, prefix + h * w, width)`` of a transformer, class token
            first, or the map of a convolutional network.
        maps: ``(B, W_i, h_i, w_i)`` for each block asked for, in the order of the request.
        grid: ``(h, w)`` of the dense map.
    """

    state: Tensor
    maps: list[Tensor]
    grid: tuple[int, int]


class VisionTower(nn.Module):
    """Base of the vision towers: a stem, a list of blocks, a head.

    The blocks of a transformer are its layers, those of a convolutional network its stages. A family implements the
    steps from `stem` to `dense_map`; everything else follows.

    Attributes:
        embed_dim: Channels of the shared image-text space.
        image_size: Native input ``(H, W)``.
        patch_size: ``(rows, columns)`` of pixels per cell of the dense map.
        block_channels: Channels of each block's map.
        block_strides: Pixels ``(rows, columns)`` per cell of each block's map.
        dense_modes: Names of the dense modes that this tower defines.
        mean: Mean of RGB in 0..1 that its images are normalised with.
        std: Standard deviation likewise.
        grad_checkpointing: Keep nothing of a block that trains but its input, and run it again for the gradient.
    """

    embed_dim: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    block_channels: Sequence[int]
    block_strides: Sequence[tuple[int, int]]
    dense_modes: tuple[str, ...] = ('value',)
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    grad_checkpointing: bool = False
    _has_cuda_graphs: bool = False

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Transformer layers or stages, first to last."""
        raise NotImplementedError

    def stem(self, images: Tensor) -> Tensor:
        """State before the first block of images ``(B, 3, H, W)``."""
        raise NotImplementedError

    def run_block(self, index: int, state: Tensor, grid: tuple[int, int]) -> Tensor:
        """State after block ``index``, as it was trained."""
        raise NotImplementedError

    def run_last_block(self, state: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
        """State after the last block in a dense mode for which `runs_as_trained` is false."""
        raise NotImplementedError

    def runs_as_trained(self, mode: str | None) -> bool:
        """Whether the last block works in ``mode`` as it was trained; None stands for just that."""
        return mode is None

    def as_map(self, state: Tensor, grid: tuple[int, int]) -> Tensor:
        """State after a block as its map ``(B, W_i, h_i, w_i)``."""
        raise NotImplementedError

    def pool(self, state: Tensor) -> Tensor:
        """Image embedding ``(B, embed_dim)`` of the state after the last block."""
        raise NotImplementedError

    def dense_map(self, state: Tensor, grid: tuple[int, int]) -> Tensor:
        """Dense embeddings ``(B, embed_dim, h, w)`` of the state after the last block: the head at every cell."""
        raise NotImplementedError

    def unused_parameters(self, mode: str, letters: str = '') -> Iterator[nn.Parameter]:
        """Parameters of the blocks that a dense mode never touches; DDP waits in vain for their gradients.

        Args:
            mode: Dense mode.
            letters: Projections that `encode_dense_and_context` is asked for beside it.
        """
        return iter(())

    def stem_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of `stem` that may train."""
        raise NotImplementedError

    @staticmethod
    def rename_key(key: str) -> str | None:
        """Our name of a checkpoint's key inside ``visual.``; None for a buffer that is recomputed."""
        return key

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Dense grid ``(h, w)`` of images ``(B, 3, H, W)``; what does not fill a patch is dropped at the far edges.

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
        """Return ``mode`` or raise a ValueError that names the modes of this tower."""
        if mode not in self.dense_modes:
            raise ValueError(f'{type(self).__name__} has no dense mode {mode!r}; it defines {self.dense_modes}')
        return mode

    def run(
        self, images: Tensor, mode: str | None = None, indices: Sequence[int] = (), depth: int | None = None
    ) -> TowerOutput:
        """Pass images through the blocks.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            mode: Dense mode of the last block; None runs it as it was trained.
            indices: Blocks, counted from 0, whose maps are wanted. Negative ones count from the end.
            depth: Stop after so many blocks; None runs all.

        Raises:
            ValueError: For an unknown mode, an index out of range or a wrong image shape.
        """
        last = len(self.blocks) - 1
        wanted = [self.block_index(i) for i in indices]
        grid = self.grid_of(images)
        if mode is not None:
            self.check_mode(mode)
        if self._has_cuda_graphs:
            # All blocks run the same code: PyTorch would take the second for a new step, and its graph would overwrite
            # what the first returned.
            torch.compiler.cudagraph_mark_step_begin()
        state, maps = self.stem(images.to(self.dtype)), {}
        for index in range(last + 1 if depth is None else depth):
            state = self._run(index, state, grid, mode if index == last else None)
            if index in wanted:
                maps[index] = self.as_map(state, grid)
        return TowerOutput(state=state, maps=[maps[i] for i in wanted], grid=grid)

    def encode_image(self, images: Tensor) -> Tensor:
        """Image embeddings ``(B, embed_dim)`` of images (B, 3, H, W), not normalised."""
        return self.pool(self.run(images).state)

    def encode_dense(self, images: Tensor, mode: str = 'value') -> Tensor:
        """Dense embeddings ``(B, embed_dim, h, w)`` of images (B, 3, H, W), not normalised."""
        output = self.run(images, mode)
        return self.dense_map(output.state, output.grid)

    def encode_image_and_dense(self, images: Tensor, mode: str = 'value') -> tuple[Tensor, Tensor]:
        """`encode_image` and `encode_dense` from one pass: at most the last block runs twice."""
        last = len(self.blocks) - 1
        early = self.run(images, self.check_mode(mode), depth=last)
        image = self._run(last, early.state, early.grid, None)
        dense = image if self.runs_as_trained(mode) else self._run(last, early.state, early.grid, mode)
        return self.pool(image), self.dense_map(dense, early.grid)

    def encode_dense_and_context(
        self, images: Tensor, mode: str = 'value', letters: str = 'q'
    ) -> tuple[Tensor, Tensor]:
        """Dense embeddings and what the last block would attend with, from one pass.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            mode: Dense mode.
            letters: Projections of the last block's input: 'q', 'k', 'v' or several of them.

        Returns:
            `encode_dense`, and the projections ``(B, len(letters) * W, h, w)`` of the patches side by side, without
            rotary positions.

        Raises:
            ValueError: If the tower has no such projections.
        """
        self.check_letters(letters)
        raise NotImplementedError

    def check_letters(self, letters: str) -> str:
        """Return ``letters`` or raise a ValueError if the last block has no such projections."""
        raise ValueError(f'{type(self).__name__} has no queries, keys and values; take a ViT for context features')

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.parameters()).dtype

    def set_trainable(self, blocks: int, mode: str = 'value', letters: str = '') -> None:
        """Freeze the tower but its last ``blocks`` blocks.

        Stem, positions, final norm, pooling and projection always stay frozen, and so do parameters that ``mode``
        leaves unused (queries and keys of the last block in 'value'). ``blocks=0`` freezes everything.

        Args:
            blocks: How many blocks train, counted from the last.
            mode: Dense mode that trains.
            letters: Projections of the last block that train beside it, see `encode_dense_and_context`.

        Raises:
            ValueError: If the tower has fewer blocks, no such mode or no such projections.
        """
        if not 0 <= blocks <= len(self.blocks):
            raise ValueError(f'trainable blocks must be in 0..{len(self.blocks)}, got {blocks}')
        self.requires_grad_(False)
        for block in self.blocks[len(self.blocks) - blocks :]:
            block.requires_grad_(True)
        letters = letters and self.check_letters(letters)
        for parameter in self.unused_parameters(self.check_mode(mode), letters):
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

    def fold(self) -> None:
        """Merge weights, for compiled code to make the most of them, in a tower that is to run but never to change.

        Features stay the same up to rounding. Its `state_dict` is then no checkpoint any more.
        """

    def compile_blocks(self, **options: Any) -> None:
        """Compile every block, once for all that are alike, and the dense modes of the last.

        Args:
            options: Those of `torch.compile`, such as ``mode``.
        """
        options = compile_options(options, [weight for block in self.blocks for weight in block.parameters()])
        for block in self.blocks:
            set_rows_apart(block)
            block.compile(**options)
        self._has_cuda_graphs = has_cuda_graphs(options)
        # not the bound method, by which a copy of this tower would run the weights of this one
        self.__dict__['_compiled_last_block'] = torch.compile(type(self).run_last_block, **options)

    def __getstate__(self) -> dict[str, Any]:
        # as torch does with compiled modules: a copy is compiled when it is asked to be
        of_compiling = {'_compiled_last_block', '_has_cuda_graphs'}
        return {key: value for key, value in super().__getstate__().items() if key not in of_compiling}

    def _run(self, index: int, state: Tensor, grid: tuple[int, int], mode: str | None) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._step, index, state, grid, mode, use_reentrant=False)
        return self._step(index, state, grid, mode)

    def _step(self, index: int, state: Tensor, grid: tuple[int, int], mode: str | None) -> Tensor:
        if self.runs_as_trained(mode):
            return self.run_block(index, state, grid)
        run_last_block = self.__dict__.get('_compiled_last_block', type(self).run_last_block)
        return run_last_block(self, state, grid, mode)

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


def no_dense_path(model: str, reason: str) -> ValueError:
    """The error for a model without a dense path: one sentence with the reason and models that have one."""
    return ValueError(f'no dense path is defined for {model}, {reason}; use {WITH_DENSE_PATH}')
