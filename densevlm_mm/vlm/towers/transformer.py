"""Vision towers whose state is a sequence of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import VisionTower, to_map


class TransformerTower(VisionTower):
    """Base of the ViTs: a family makes tokens, runs blocks on them, projects and pools them.

    Attributes:
        width: Channels of the residual stream.
        num_prefix: Tokens before those of the patches: the class token, if there is one, and registers.
    """

    width: int
    num_prefix: int = 1
    dense_modes: tuple[str, ...] = ('value', 'vanilla')

    @property
    def block_channels(self) -> list[int]:
        return [self.width] * len(self.blocks)

    @property
    def block_strides(self) -> list[tuple[int, int]]:
        return [self.patch_size] * len(self.blocks)

    def project(self, tokens: Tensor) -> Tensor:
        """Final norm and projection of every token: ``(B, L, width) -> (B, L, embed_dim)``."""
        raise NotImplementedError

    def projections(self, tokens: Tensor, letters: str) -> dict[str, Tensor]:
        """Queries, keys or values ``(B, L, width)`` of the last block's input, as far as ``letters`` name them."""
        raise NotImplementedError

    def runs_as_trained(self, mode: str | None) -> bool:
        return mode in (None, 'vanilla')

    def as_map(self, state: Tensor, grid: tuple[int, int]) -> Tensor:
        return to_map(state[:, self.num_prefix :], grid)

    def dense_map(self, state: Tensor, grid: tuple[int, int]) -> Tensor:
        return to_map(self.project(state[:, self.num_prefix :]), grid)

    def encode_dense_and_context(
        self, images: Tensor, mode: str = 'value', letters: str = 'q'
    ) -> tuple[Tensor, Tensor]:
        self.check_letters(letters)
        last = len(self.blocks) - 1
        early = self.run(images, self.check_mode(mode), depth=last)
        projected = self.projections(early.state, letters)
        context = torch.cat([projected[letter] for letter in letters], dim=-1)
        dense = self._run(last, early.state, early.grid, mode)
        return self.dense_map(dense, early.grid), self.as_map(context, early.grid)

    def check_letters(self, letters: str) -> str:
        if not letters or not set(letters) <= set('qkv') or len(set(letters)) != len(letters):
            raise ValueError(f"context features are named by some of the letters 'q', 'k' and 'v', got {letters!r}")
        return letters
