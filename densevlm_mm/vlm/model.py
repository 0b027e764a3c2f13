"""The two-tower model: images, dense maps, regions and text in one space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .architectures import build_text_tower, build_vision_tower, resolve_arch
from .region_pooling import pad_regions, pool_boxes, pool_masks
from .text_embeddings import class_embeddings
from .tokenizers import build_tokenizer
from .vocabulary import build_vocabulary


class VLM(nn.Module):
    """A CLIP whose dense features can be asked for.

    Args:
        arch: Name or model config, see `architectures.resolve_arch`.
        dense_mode: How the last block makes dense features; 'value' is DenseVLM's and CLIPSelf's. Towers list theirs.

    Raises:
        ValueError: For an unknown arch or key, or a dense mode that its vision tower does not define.
    """

    def __init__(self, arch: str | Mapping[str, Any], dense_mode: str = 'value') -> None:
        super().__init__()
        config = self.config = resolve_arch(arch)
        self.visual = build_vision_tower(config)
        self.text = build_text_tower(config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        # a sigmoid loss's (SigLIP), kept for its checkpoints
        bias = config.get('init_logit_bias')
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        self.tokenizer = build_tokenizer(config['text_cfg'])
        # what text embeddings depend on beside the weights
        self.text_config = {**config['text_cfg'], 'quick_gelu': config.get('quick_gelu', False)}
        self.dense_mode = self.visual.check_mode(dense_mode)

    @property
    def embed_dim(self) -> int:
        """Channels C of the image-text space."""
        return self.visual.embed_dim

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.logit_scale.device

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        """Image embeddings.

        Args:
            images: ``(B, 3, H, W)``, normalised; any size of at least one patch.
            normalize: L2-normalise them.

        Returns:
            ``(B, C)``.
        """
        features = self.visual.encode_image(images)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_dense(self, images: Tensor, normalize: bool = True) -> Tensor:
        """Dense features in the image-text space, one per patch.

        Args:
            images: ``(B, 3, H, W)``, normalised; pixels that do not fill a patch at the right and bottom are dropped.
            normalize: L2-normalise each of them.

        Returns:
            ``(B, C, h, w)``.
        """
        dense = self.visual.encode_dense(images, self.dense_mode)
        return F.normalize(dense, dim=1) if normalize else dense

    def encode_blocks(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Raw patch tokens of the residual stream after the given blocks, all with ordinary attention.

        The blocks of a convolutional tower are its stages.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            indices: Blocks counted from 0; negative ones from the end.

        Returns:
            One ``(B, W_i, h_i, w_i)`` per index, as wide and fine as the tower's ``block_channels`` and
            ``block_strides`` say.
        """
        depth = max((self.visual.block_index(i) for i in indices), default=-1) + 1
        return self.visual.run(images, indices=indices, depth=depth).maps

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        """Text embeddings ``(N, C)`` of token ids ``(N, L)``."""
        features = self.text(tokens.to(self.device))
        return F.normalize(features, dim=-1) if normalize else features

    def encode_boxes(self, images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Box features by 1x1 RoIAlign on the normalised dense map.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            boxes: Per image ``(N_i, 4)``, xyxy in 0..1 of the image.

        Returns:
            ``(sum N_i, C)``, *before* an L2 norm of their own, as the reference gives them.
        """
        padded, valid = pad_regions([b.to(images.device) for b in boxes])
        return pool_boxes(self.encode_dense(images), padded)[valid]

    def encode_masks(self, images: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Mask features: the mean of the normalised dense map over each mask.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            masks: Per image ``(N_i, h, w)`` on the token grid, any non-negative dtype.

        Returns:
            ``(sum N_i, C)``, L2-normalised; zero for an empty mask.
        """
        padded, valid = pad_regions([m.to(images.device) for m in masks])
        return pool_masks(self.encode_dense(images), padded)[valid]

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """Token ids ``(N, L)`` of N texts, or of one.

        Raises:
            RuntimeError: If the model has no tokenizer of its own, or its tokenizer's files are missing.
        """
        if self.tokenizer is None:
            raise RuntimeError("this model's vocabulary is not CLIP's: set text_cfg.words or vlm.tokenizer")
        return self.tokenizer([texts] if isinstance(texts, str) else list(texts))

    @torch.no_grad()
    def classify_regions(
        self, images: Tensor, boxes_or_masks: Sequence[Tensor], vocabulary: Any, templates: str | Sequence[str] = 'vild'
    ) -> Tensor:
        """Class probabilities of regions, for people: a softmax over the classes, in which SigLIP's bias cancels.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            boxes_or_masks: Per image boxes ``(N_i, 4)``, xyxy in 0..1, or masks ``(N_i, h, w)`` on the token grid.
            vocabulary: A `Vocabulary` or anything that `build_vocabulary` takes, such as a list of names.
            templates: Prompt templates.

        Returns:
            ``(sum N_i, K)``, rows summing to 1, sharpened by the model's logit scale.
        """
        encode = self.encode_masks if boxes_or_masks[0].ndim == 3 else self.encode_boxes
        features = encode(images, boxes_or_masks)
        texts = class_embeddings(self, build_vocabulary(vocabulary), templates, normalize=True)
        logits = F.normalize(features.float(), dim=-1) @ texts.T
        return (self.logit_scale.exp().float() * logits).softmax(-1)
