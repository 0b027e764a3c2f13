"""CAT-Seg: a segmentor for any classes, on a CLIP of which little more than the attention is fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample
from timm.layers import to_2tuple
from torch import Tensor, nn

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import Vocabulary, build_vocabulary, load_vlm
from densevlm_mm.vlm.factory import resolve_dtype
from densevlm_mm.vlm.prompts import fill_template, get_templates
from densevlm_mm.vlm.towers import VisionTower

from ..class_scores import LabelRule
from ..training_free import preprocessor_of
from ..vocabulary_meta import VocabularySegmentor, refuse_arguments
from ..windows import average_windows, sliding_windows
from .fine_tuning import FineTuning, fine_tune, unused_letters
from .image_features import check_class_token_residual, check_guidance_blocks, image_features
from .one_vs_rest_loss import check_labels, one_vs_rest_loss

_QUERIES_AT_ONCE = 8  # at the pixels of all views: 23 MiB for 5 views of 384 px
_PROMPTS_AT_ONCE = 512  # through the text tower


@MODELS.register_module()
class CATSeg(VocabularySegmentor):
    """Cost aggregation on the dense map of a CLIP (Cho et al., CVPR 2024, arXiv:2303.11797).

    Image and text towers are fine-tuned, gently; everything else learns from cosines of image and text, and so works
    for classes that it has never seen. Evaluation follows the paper: an image is squashed to `squash_size`;
    windows of that are seen, and all of it once more, resized to a window; the probabilities of all views are averaged.

    Args:
        vlm: Arguments of `load_vlm`, in fp32. Its vision tower must be a ViT.
        vocabulary: Classes in the order of the labels; anything that `build_vocabulary` takes. Each is queried by its
            first synonym, up to a ", "; a class "background" by each of its words, if it has some, of which the best
            counts.
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
        views_at_once: How many views of an image pass through the model together. Memory grows with it; 1 for large
            vocabularies on a CPU.
        ignore_index: Label of pixels without a class.
        ignored: What such pixels are to the loss, see `one_vs_rest_loss`.
        data_preprocessor: None takes BGR images as MMSegmentation loads them, normalises with the mean and standard
            deviation that the vision tower was trained with, and pads the images of a batch to one size.
        init_cfg: See ``BaseSegmentor``.
        pretrained: None, as are the next two; see `refuse_arguments`.
        train_cfg: None.
        test_cfg: None.

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
        pretrained: None = None,
        train_cfg: None = None,
        test_cfg: None = None,
    ) -> None:
        refuse_arguments(pretrained=pretrained, train_cfg=train_cfg, test_cfg=test_cfg)
        _check_dtype(vlm.get('dtype'))
        model = load_vlm(**vlm)
        super().__init__(data_preprocessor or _preprocessor(model.visual, ignore_index), init_cfg)
        _check_padding(self.data_preprocessor, ignore_index)
        self.vlm = model
        self._normalizes_for_tower = not data_preprocessor
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

    def adopt_normalization(self, meta: Mapping[str, Any]) -> None:
        """Normalise images as the weights were trained, unless the config gave a preprocessor.

        Args:
            meta: What the weights' file says of the VLM, see `read_meta`; without ``mean`` and ``std`` all stays.
        """
        if not (meta.get('mean') and meta.get('std')):
            return
        tower = self.vlm.visual
        tower.mean, tower.std = (tuple(map(float, meta[key])) for key in ('mean', 'std'))
        if self._normalizes_for_tower:
            device = self.data_preprocessor.device
            self.data_preprocessor = _preprocessor(tower, self.ignore_index).to(device)

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

    @torch.no_grad()
    def segment(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Labels ``size`` of one image: of the best query, the first of equals.

        Args:
            image: ``(3, H, W)``, normalised.
            size: ``(rows, columns)`` of the result in px.
        """
        best, query, first = image.new_zeros(size, dtype=torch.float32), image.new_zeros(size, dtype=torch.long), 0
        for maps in self._probabilities(image):
            values, positions = _resize(maps[None], size)[0].max(0)
            better = values > best
            best, query = values.where(better, best), (first + positions).where(better, query)
            first += len(maps)
        return torch.tensor(self.rule.classes, device=query.device)[query]

    @torch.no_grad()
    def probabilities(self, image: Tensor) -> Tensor:
        """Probabilities ``(P, h, w)`` of all P queries, at the pixels of the squashed image, fp32.

        For a look at them; `segment` does without so much memory.

        Args:
            image: ``(3, H, W)``, normalised.
        """
        return torch.cat(list(self._probabilities(image)))

    def _probabilities(self, image: Tensor) -> Iterator[Tensor]:
        """Those of a few queries at a time: enlarged, the views of a large vocabulary are gigabytes."""
        image = image[None] if self.squash_size is None else _resize(image[None], self.squash_size)
        size = tuple(image.shape[-2:])
        windows = [(0, 0, *size)] if self.window is None else sliding_windows(size, self.window, self.stride)
        views = [image[..., y1:y2, x1:x2] for y1, x1, y2, x2 in windows]
        side = views[0].shape[-2:]
        if len(windows) > 1:
            views.append(_resize(image, side))
        logits = torch.cat([self._forward(chunk) for chunk in torch.cat(views).split(self.views_at_once)])
        for maps in logits.split(_QUERIES_AT_ONCE, dim=1):
            yield _mean_of_views(_resize(maps.float(), side).sigmoid(), windows, size)

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
        chunks = self.tokens.split(_PROMPTS_AT_ONCE)
        texts = torch.cat([self.vlm.encode_text(chunk, normalize=False) for chunk in chunks])
        return texts.unflatten(0, (-1, len(self.templates)))

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CATSeg:
        self.texts = None  # no buffer: a model that averages this one pairs their buffers, and must not find another
        return super()._apply(fn, recurse)


def queries_of(vocabulary: Vocabulary) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """What stands for each class: its first synonym; or the words of a background rule, all of them.

    Lists of names often join synonyms by ", "; what comes first is the prompt then, too, as in the released code.

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
    return tuple(phrases[i].partition(', ')[0] for i in kept), tuple(classes[i] for i in kept)


def _mean_of_views(views: Tensor, windows: Sequence[tuple[int, int, int, int]], size: tuple[int, int]) -> Tensor:
    """Maps ``(P, *size)`` from those of views (n, P, h, w): windows and, after several, the whole, each for a half."""
    if len(windows) == 1:
        return views[0]
    *parts, whole = views
    return (average_windows(parts, windows, size) + _resize(whole[None], size)[0]) / 2


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


def _check_dtype(dtype: torch.dtype | str | None) -> None:
    if resolve_dtype(dtype) not in (None, torch.float32):
        raise ValueError(f'vlm.dtype={dtype!r}: CATSeg trains its CLIP, whose weights must be in fp32; leave dtype out')


def _check_padding(preprocessor: nn.Module, ignore_index: int) -> None:
    label = getattr(preprocessor, 'seg_pad_val', ignore_index)
    if label != ignore_index:
        raise ValueError(
            f'data_preprocessor pads labels with seg_pad_val={label}, which is not the ignore_index {ignore_index}: '
            f'padding would train as a class; set data_preprocessor.seg_pad_val={ignore_index}'
        )
