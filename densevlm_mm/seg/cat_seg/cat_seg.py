"""CAT-Seg: a segmentor for any classes, on a CLIP of which little more than the attention is fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models import BaseSegmentor, SegDataPreProcessor
from mmseg.structures import SegDataSample
from timm.layers import to_2tuple
from torch import Tensor, nn

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import Vocabulary, build_vocabulary, load_vlm
from densevlm_mm.vlm.prompts import fill_template, get_templates
from densevlm_mm.vlm.towers import VisionTower

from ..class_scores import LabelRule, label_map, vocabulary_meta
from ..training_free import preprocessor_of, unflipped, without_padding
from ..windows import average_windows, resize_weights, sliding_windows
from .fine_tuning import FineTuning, fine_tune, unused_letters
from .image_features import check_class_token_residual, check_guidance_blocks, image_features
from .one_vs_rest_loss import check_labels, one_vs_rest_loss


@MODELS.register_module()
class CATSeg(BaseSegmentor):
    """Cost aggregation on the dense map of a CLIP (Cho et al., CVPR 2024, arXiv:2303.11797).

    Image and text towers are fine-tuned, gently; everything else learns from cosines of image and text, and so works
    for classes that it has never seen. Evaluation follows the paper: an image is squashed to `squash_size`, seen in
    windows and once as a whole, and the probabilities of all views are averaged.

    Args:
        vlm: Arguments of `load_vlm`. Its vision tower must be a ViT.
        vocabulary: Classes in the order of the labels; anything that `build_vocabulary` takes. Each is queried by its
            first synonym; a class "background" by each of its words, if it has some, of which the best counts.
        aggregator: Options of `CATSegAggregator`. Its channels of text and prompts follow from the VLM and `templates`.
        guidance_blocks: Blocks, counted from 0, whose maps guide the decoder: (3, 7) of 12, (7, 15) of 24.
        templates: Prompt templates, each of which becomes a channel of the cost volume.
        finetune_visual: What trains of the vision tower, see `fine_tune`. What the dense mode leaves unused does not.
        finetune_text: What trains of the text tower. Unless it is 'none', the text is encoded anew in every step.
        normalize_dense: L2-normalise the dense map that guides the aggregation. The released models on OpenAI's CLIP
            do not; those on EVA-CLIP do.
        class_token_residual: Make dense maps as the released models on OpenAI's CLIP do, see `run_on_class_token`.
        clip_size: Side, or ``(H, W)``, that a view is resized to for the tower, in px.
        squash_size: Side, or ``(H, W)``, that images are resized to in evaluation whatever their shape; None leaves
            them as the pipeline made them.
        window: Side of the windows in evaluation, in px of the squashed image; None for the whole image alone.
        stride: Px from one window to the next.
        views_at_once: How many views of an image pass through the model together.
        ignore_index: Label of pixels without a class.
        ignored: What such pixels are to the loss, see `one_vs_rest_loss`.
        data_preprocessor: None takes BGR images as MMSegmentation loads them, normalises with the mean and standard
            deviation that the vision tower was trained with, and pads the images of a batch to one size.
        init_cfg: See ``BaseSegmentor``.

    Raises:
        ValueError: For options that contradict each other or do not fit the VLM.
    """

    def __init__(
        self,
        vlm: Mapping[str, Any],
        vocabulary: Any,
        *,
        aggregator: Mapping[str, Any] | None = None,
        guidance_blocks: Sequence[int] = (3, 7),
        templates: str | Sequence[str] = ('A photo of a {} in the scene',),
        finetune_visual: FineTuning = 'qv',
        finetune_text: FineTuning = 'qv',
        normalize_dense: bool = True,
        class_token_residual: bool = False,
        clip_size: int | tuple[int, int] = 384,
        squash_size: int | tuple[int, int] | None = 640,
        window: int | None = 384,
        stride: int = 256,
        views_at_once: int = 5,
        ignore_index: int = 255,
        ignored: Literal['negative', 'skip'] = 'negative',
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        model = load_vlm(**vlm)
        super().__init__(data_preprocessor or _preprocessor(model.visual, ignore_index), init_cfg)
        self.vlm = model
        self.templates = get_templates(templates)
        self.guidance_blocks = check_guidance_blocks(model.visual, guidance_blocks)
        if class_token_residual:
            check_class_token_residual(model.visual, model.dense_mode, self.guidance_blocks)
        if window is not None:
            sliding_windows((window, window), window, stride)  # refuses gaps between them
        if ignored not in ('negative', 'skip'):
            raise ValueError(f"ignored must be 'negative' or 'skip', got {ignored!r}")
        self.normalize_dense, self.class_token_residual = normalize_dense, class_token_residual
        self.clip_size = to_2tuple(clip_size)
        self.squash_size = None if squash_size is None else to_2tuple(squash_size)
        self.window, self.stride, self.views_at_once = window, stride, views_at_once
        self.ignore_index, self.ignored = ignore_index, ignored
        self._build_heads(aggregator or {})
        self._fine_tune(finetune_visual, finetune_text)
        self.register_buffer('tokens', None, persistent=False)
        self.register_buffer('texts', None, persistent=False)
        self.set_vocabulary(vocabulary)

    def set_vocabulary(self, vocabulary: Any) -> None:
        """Segment into other classes from now on.

        Args:
            vocabulary: See the class.

        Raises:
            ValueError: If its background is a matter of threshold.
        """
        vocabulary = build_vocabulary(vocabulary)
        phrases, classes = queries_of(vocabulary)
        prompts = [fill_template(template, phrase) for phrase in phrases for template in self.templates]
        self.tokens = self.vlm.tokenize(prompts).to(self.vlm.device)
        self.texts = None
        self.vocabulary, self.rule = vocabulary, LabelRule(classes=classes)
        self.dataset_meta = vocabulary_meta(vocabulary)

    def train(self, mode: bool = True) -> CATSeg:
        """Set training mode; text embeddings are made anew, of the weights that are there then."""
        self.texts = None
        return super().train(mode)

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Dense map ``(B, C, h, w)`` and the decoder's guidance ``(B, G_i, 2^i h, 2^i w)`` of images (B, 3, H, W)."""
        views = _resize(inputs, self.clip_size)
        options = {'class_token_residual': self.class_token_residual}
        dense, maps = image_features(self.vlm.visual, views, self.vlm.dense_mode, self.guidance_blocks, **options)
        guidance = [up(features) for up, features in zip(self.upsamplers, maps, strict=True)]
        return F.normalize(dense, dim=1) if self.normalize_dense else dense, guidance

    def encode_decode(self, inputs: Tensor, batch_data_samples: list[SegDataSample] | None = None) -> Tensor:
        """Logits ``(B, P, H, W)`` of all P queries for images (B, 3, H, W), each seen as a whole."""
        return _resize(self._forward(inputs), inputs.shape[-2:])

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            inputs: ``(B, 3, H, W)``, normalised.
            data_samples: One per image, with labels ``(1, H, W)`` in ``gt_sem_seg``.

        Returns:
            ``loss_seg``, a scalar.

        Raises:
            ValueError: If a label is no class of the vocabulary, or the background has several queries.
        """
        labels = torch.stack([sample.gt_sem_seg.data[0] for sample in data_samples]).long()
        if len(self.rule.classes) != len(self.vocabulary):
            raise ValueError('a class takes one query in training: leave the words of the background out')
        check_labels(labels, len(self.vocabulary), self.ignore_index)
        logits = _resize(self._forward(inputs), labels.shape[-2:])
        options = {'ignore_index': self.ignore_index, 'ignored': self.ignored}
        return {'loss_seg': one_vs_rest_loss(logits, labels, **options)}

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Segment a batch of images.

        Args:
            inputs: ``(B, 3, H, W)``, normalised.
            data_samples: ``ori_shape`` is the size of the result, that of the image itself if absent. Padding that the
                preprocessor noted is cut off, and a flip that the pipeline noted undone.

        Returns:
            The samples with ``pred_sem_seg``: labels ``(1, H, W)``, positions in the vocabulary, whose names become the
            samples' meta information ``vocabulary``.
        """
        data_samples = [SegDataSample() for _ in inputs] if data_samples is None else data_samples
        for image, sample in zip(inputs, data_samples, strict=True):
            meta = sample.metainfo
            image = without_padding(image, meta)
            labels = self.segment(image, tuple(meta.get('ori_shape', image.shape[-2:])[:2]))
            sample.set_metainfo({'vocabulary': self.vocabulary.names})
            sample.pred_sem_seg = PixelData(data=unflipped(labels, meta)[None])
        return data_samples

    @torch.no_grad()
    def segment(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Labels ``size`` of one image.

        Args:
            image: ``(3, H, W)``, normalised.
            size: ``(rows, columns)`` of the result in px.
        """
        maps = self.probabilities(image)
        rows, columns = (resize_weights(*sides) for sides in zip(maps.shape[-2:], size, strict=True))
        return label_map(maps, self.rule, rows=rows, columns=columns)

    def probabilities(self, image: Tensor) -> Tensor:
        """Probabilities ``(P, h, w)`` of all P queries, at the pixels of the squashed image.

        Args:
            image: ``(3, H, W)``, normalised.
        """
        image = image[None] if self.squash_size is None else _resize(image[None], self.squash_size)
        size = tuple(image.shape[-2:])
        if self.window is None:
            return self._view_probabilities(image)[0]
        windows = sliding_windows(size, self.window, self.stride)
        crops = [image[..., y1:y2, x1:x2] for y1, x1, y2, x2 in windows]
        if len(crops) == 1:
            return self._view_probabilities(crops[0])[0]
        *parts, whole = self._view_probabilities(torch.cat([*crops, _resize(image, crops[0].shape[-2:])]))
        return (average_windows(parts, windows, size) + _resize(whole[None], size)[0]) / 2

    def _forward(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> Tensor:
        """Logits ``(B, P, 4h, 4w)`` of all P queries at four times the resolution of the tokens."""
        dense, guidance = self.extract_feat(inputs)
        texts = self.query_texts().expand(len(inputs), -1, -1, -1)
        return self.aggregator(dense, texts, guidance)

    def query_texts(self) -> Tensor:
        """Text features ``(P, N, C)`` of P queries in N templates: with gradient if they train, else made once."""
        if self.training and self._text_trains:
            return self._encode_texts()
        if self.texts is None:
            with torch.no_grad():
                self.texts = self._encode_texts()
        return self.texts

    def _encode_texts(self) -> Tensor:
        return self.vlm.encode_text(self.tokens, normalize=False).unflatten(0, (-1, len(self.templates)))

    def _view_probabilities(self, views: Tensor) -> Tensor:
        """Probabilities ``(n, P, H, W)`` for views (n, 3, H, W)."""
        chunks = views.split(self.views_at_once)
        return torch.cat([self.encode_decode(chunk).float().sigmoid() for chunk in chunks])

    def _build_heads(self, options: Mapping[str, Any]) -> None:
        tower = self.vlm.visual
        config = {'type': 'densevlm_mm.CATSegAggregator', 'embed_dim': tower.embed_dim, **options}
        self.aggregator = MODELS.build({**config, 'num_prompts': len(self.templates)})
        blocks, dims = self.guidance_blocks, self.aggregator.guidance_dims
        if len(blocks) != len(dims):
            raise ValueError(f"guidance_blocks {blocks} are not as many as the aggregator's guidance_dims {dims}")
        channels = zip((tower.block_channels[index] for index in blocks), dims, strict=True)
        self.upsamplers = nn.ModuleList(
            nn.ConvTranspose2d(width, dim, 2**step, stride=2**step) for step, (width, dim) in enumerate(channels, 1)
        )

    def _fine_tune(self, visual: FineTuning, text: FineTuning) -> None:
        tower, mode = self.vlm.visual, self.vlm.dense_mode
        self.vlm.requires_grad_(False)
        as_trained = tower.runs_as_trained(mode)
        unused = () if as_trained else tower.unused_parameters(mode)
        fine_tune(tower, visual, last_unused='' if as_trained else unused_letters(mode), unused=unused)
        fine_tune(self.vlm.text, text)
        self._text_trains = any(parameter.requires_grad for parameter in self.vlm.text.parameters())

    def _load_from_state_dict(self, *args: Any) -> None:
        self.texts = None
        super()._load_from_state_dict(*args)


def queries_of(vocabulary: Vocabulary) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """What stands for each class: its first synonym; or the words of a background rule, all of them.

    Returns:
        P phrases in the order of the classes, and P class indices.

    Raises:
        ValueError: If the background is a matter of threshold.
    """
    if vocabulary.background == 'threshold':
        raise ValueError(
            "CATSeg knows no background by threshold: give the vocabulary's background words, or None for a class like "
            'the others'
        )
    of_background = vocabulary.names.index('background') if vocabulary.background else None
    phrases, classes = vocabulary.expanded()
    first = {index: position for position, index in reversed(list(enumerate(classes)))}
    kept = [i for i, index in enumerate(classes) if index == of_background or first[index] == i]
    return tuple(phrases[i] for i in kept), tuple(classes[i] for i in kept)


def _resize(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images or maps ``(B, C, H, W)`` resized bilinearly."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, tuple(size), mode='bilinear', align_corners=False)


def _preprocessor(tower: VisionTower, ignore_index: int) -> SegDataPreProcessor:
    preprocessor = preprocessor_of(tower)
    # training batches are padded, too
    preprocessor.size_divisor, preprocessor.seg_pad_val = 1, ignore_index
    return preprocessor
