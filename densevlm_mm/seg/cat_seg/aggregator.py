"""CAT-Seg's cost aggregation: from cosines of image and text to one logit map per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from densevlm_mm.registry import MODELS

from .class_attention import ClassAggregation
from .cost_volume import cost_volume, pick, strongest_classes
from .decoder import Decoder
from .reference_names import aggregator_options, aggregator_state
from .spatial_attention import SpatialAggregation

# Logit of a class that was not among the strongest.
_OUT_OF_QUESTION = -100.0


class AggregationLayer(nn.Module):
    """Spatial, then class aggregation; see `SpatialAggregation` and `ClassAggregation` for the arguments."""

    def __init__(
        self, dim: int, *, appearance_dim: int, text_dim: int, num_heads: int, window: int, pad_len: int
    ) -> None:
        super().__init__()
        self.spatial = SpatialAggregation(dim, appearance_dim, num_heads=num_heads, window=window)
        self.classes = ClassAggregation(dim, text_dim, num_heads=num_heads, pad_len=pad_len)

    def forward(self, volume: Tensor, appearance: Tensor, text: Tensor, pooling: tuple[int, int]) -> Tensor:
        """Volume ``(B, T, h, w, dim)`` from a volume and the guidance of either part."""
        return self.classes(self.spatial(volume, appearance), text, pooling)


@MODELS.register_module()
class CATSegAggregator(nn.Module):
    """Cost aggregator and decoder of CAT-Seg (Cho et al., CVPR 2024, arXiv:2303.11797).

    It takes any number of classes in any order: they are told apart by their text alone. Logits of a class depend on
    which others there are.

    Args:
        embed_dim: Channels C of the image-text space.
        guidance_dims: Channels of the two maps that guide the decoder.
        hidden_dim: Channels of the volume.
        num_layers: How often space and classes are aggregated in turn.
        num_heads: Attention heads.
        window: Side of an attention window in cells of the volume. Grids that it does not divide are padded.
        pooling: Cells, or ``(rows, columns)`` of cells, that class aggregation averages in training.
        eval_pooling: The same in evaluation.
        pad_len: Fewer classes are filled up with learnt tokens; of more, the strongest in each image are kept and the
            others get a logit of -100. 0 switches both off.
        num_prompts: Prompts P per class.
        appearance_dim: Channels to which the image features are projected as guidance.
        text_dim: Channels to which the text is projected as guidance.
        decoder_dims: Channels of the decoder's two steps.
        guidance_proj_dims: Channels to which the decoder's guidance is projected.
    """

    def __init__(
        self,
        embed_dim: int,
        guidance_dims: Sequence[int] = (256, 128),
        *,
        hidden_dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        window: int = 12,
        pooling: int | tuple[int, int] = 2,
        eval_pooling: int | tuple[int, int] = 1,
        pad_len: int = 256,
        num_prompts: int = 1,
        appearance_dim: int = 128,
        text_dim: int = 128,
        decoder_dims: Sequence[int] = (64, 32),
        guidance_proj_dims: Sequence[int] = (32, 16),
    ) -> None:
        super().__init__()
        self.guidance_dims = tuple(guidance_dims)
        self.pooling, self.eval_pooling = to_2tuple(pooling), to_2tuple(eval_pooling)
        self.pad_len = pad_len
        self.embedding = nn.Conv2d(num_prompts, hidden_dim, 7, padding=3)
        self.appearance_projection = _projection(embed_dim, appearance_dim)
        self.text_projection = nn.Sequential(nn.Linear(embed_dim, text_dim), nn.ReLU())
        self.guidance_projections = nn.ModuleList(
            _projection(*dims) for dims in zip(guidance_dims, guidance_proj_dims, strict=True)
        )
        options = {'num_heads': num_heads, 'window': window, 'pad_len': pad_len}
        self.layers = nn.ModuleList(
            AggregationLayer(hidden_dim, appearance_dim=appearance_dim, text_dim=text_dim, **options)
            for _ in range(num_layers)
        )
        self.decoder = Decoder(hidden_dim, decoder_dims, guidance_proj_dims)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> CATSegAggregator:
        """The aggregator of a released model, in eval mode; it pools there as the config says.

        Args:
            config: Constructor arguments by their released names.
            state_dict: Its tensors by their released names; half precision becomes single.

        Raises:
            ValueError: If an argument is unknown or asks for what is not built here.
            RuntimeError: If a tensor is missing, unexpected or of another shape; the message lists them.
        """
        options = aggregator_options(config)
        aggregator = cls(**options, **({'eval_pooling': options['pooling']} if 'pooling' in options else {}))
        aggregator.load_state_dict(aggregator_state(state_dict))
        return aggregator.eval()

    def forward(self, image_features: Tensor, text_features: Tensor, guidance: Sequence[Tensor]) -> Tensor:
        """Logits of every class.

        Args:
            image_features: ``(B, C, h, w)``; their length counts as guidance only.
            text_features: ``(B, T, P, C)``.
            guidance: ``(B, G_1, 2h, 2w)`` and ``(B, G_2, 4h, 4w)``.

        Returns:
            ``(B, T, 4h, 4w)``.
        """
        cost = cost_volume(image_features, text_features)
        guidance = [project(maps) for project, maps in zip(self.guidance_projections, guidance, strict=True)]
        appearance = self.appearance_projection(image_features).permute(0, 2, 3, 1)
        if not self.pad_len or cost.shape[1] <= self.pad_len:
            return self._aggregate(cost, text_features, appearance, guidance)
        classes = strongest_classes(cost, self.pad_len)
        kept = self._aggregate(pick(cost, classes), pick(text_features, classes), appearance, guidance)
        logits = kept.new_full((*cost.shape[:2], *kept.shape[2:]), _OUT_OF_QUESTION)
        return logits.scatter(1, classes[..., None, None].expand_as(kept), kept)

    def _aggregate(self, cost: Tensor, text_features: Tensor, appearance: Tensor, guidance: list[Tensor]) -> Tensor:
        text = F.normalize(F.normalize(text_features, dim=-1).mean(2), dim=-1)
        text = self.text_projection(text)
        volume = self.embedding(cost.flatten(0, 1)).permute(0, 2, 3, 1).unflatten(0, cost.shape[:2])
        pooling = self.pooling if self.training else self.eval_pooling
        for layer in self.layers:
            volume = layer(volume, appearance, text, pooling)
        return self.decoder(volume, guidance)


def _projection(dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim, out_dim, 3, padding=1), nn.ReLU())
