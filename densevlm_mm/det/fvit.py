"""F-ViT: a two-stage detector on a frozen CLIP, for classes that it has never had a box of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmdet.models.detectors import TwoStageDetector
from torch import Tensor, nn

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import Vocabulary, build_vocabulary, class_embeddings, load_class_embeddings, load_vlm
from densevlm_mm.vlm.digest import state_digest
from densevlm_mm.vlm.vocabulary import BACKGROUND

from .region_features import DenseRegions, LevelsWithRegions, PooledRegions, RegionFeatures

_TOWER = 'backbone.tower.'
# entries of a state dict beside its weights, which say what it was made with
_TOWER_DIGEST, _VOCABULARY_DIGEST, _MODE_DIGEST = 'tower_sha256', 'vocabulary_sha256', 'dense_mode_sha256'


@MODELS.register_module()
class FViT(TwoStageDetector):
    """MMDetection's two-stage detector with a frozen VLM as backbone and its text embeddings as classifier.

    After F-VLM (Kuo et al., arXiv:2209.15639) and F-ViT (CLIPSelf, Wu et al., arXiv:2310.01403). The tower is frozen
    and in eval mode from its construction on; neck and heads train, on the base classes of the vocabulary alone. In
    evaluation every class of the vocabulary is scored by detector and VLM together, see `ScoreFusion`.

    Args:
        backbone: A `DenseVLMBackbone`, frozen. `region_pooling` 'dense' needs its ``with_dense``.
        neck: See ``TwoStageDetector``; a list is a chain, such as `TokenPyramid` and FPN.
        rpn_head: See ``TwoStageDetector``.
        roi_head: A `FViTRoIHead`. The number of classes is the vocabulary's, whatever its heads say.
        train_cfg: See ``TwoStageDetector``.
        test_cfg: See ``TwoStageDetector``.
        vocabulary: Classes in the order of the labels, with their split; see `build_vocabulary`.
        templates: Prompt templates of the classes.
        background_words: What stands for "none of the classes" among the texts: the mean of these words.
        text_embeddings: File with the embeddings of the vocabulary's names and, last, of the word "background", see
            `load_class_embeddings`. None: those of the text tower of the backbone's checkpoint; if it has none, those
            stored in the detector's own checkpoint.
        region_pooling: How the VLM sees a region: 'dense', the mean of its dense map (F-ViT); 'head', cut out of the
            last map of a convolutional tower and pooled as an image is (F-VLM).
        save_tower: Keep the frozen tower in checkpoints. Without it they are smaller, and load only beside the same
            tower, which is checked.
        data_preprocessor: See ``TwoStageDetector``.
        init_cfg: See ``TwoStageDetector``.

    Raises:
        ValueError: For options that contradict each other, or a backbone that is not frozen.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        neck: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        rpn_head: Mapping[str, Any],
        roi_head: Mapping[str, Any],
        train_cfg: Mapping[str, Any] | None,
        test_cfg: Mapping[str, Any],
        *,
        vocabulary: Any,
        templates: str | Sequence[str] = 'vild',
        background_words: Sequence[str] = (BACKGROUND,),
        text_embeddings: str | Path | None = None,
        region_pooling: Literal['dense', 'head'] = 'dense',
        save_tower: bool = True,
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone, neck, rpn_head, roi_head, train_cfg, test_cfg, data_preprocessor, init_cfg)
        self.vlm_source = {key: backbone[key] for key in ('arch', 'checkpoint') if backbone.get(key) is not None}
        self.templates = templates
        self.background_words = Vocabulary((BACKGROUND,), (False,), synonyms=(tuple(background_words),))
        self.region_pooling = region_pooling
        self._check_backbone()
        self._has_texts = text_embeddings is not None or 'checkpoint' in self.vlm_source
        if self._has_texts:
            self.set_vocabulary(vocabulary, text_embeddings)
        else:
            self.vocabulary = build_vocabulary(vocabulary)
            self.roi_head.set_vocabulary(self.vocabulary, None, None)
        self.save_tower = save_tower
        self._tower_record: Tensor | None = None
        self.register_state_dict_post_hook(_complete_state)

    @property
    def tower(self) -> nn.Module:
        """The frozen vision tower."""
        return self.backbone.tower

    def set_vocabulary(self, vocabulary: Any, text_embeddings: str | Path | Tensor | None = None) -> None:
        """Detect other classes from now on.

        Args:
            vocabulary: Anything that `build_vocabulary` takes, such as a list of names.
            text_embeddings: File, or tensor ``(K + 1, C)``, with an embedding per class and of the word "background".
                None: computed by the text tower of the backbone's checkpoint.

        Raises:
            ValueError: If there is neither.
        """
        if text_embeddings is None and 'checkpoint' not in self.vlm_source:
            raise ValueError('no text tower to embed the classes: set backbone.checkpoint, or give text_embeddings')
        vocabulary = build_vocabulary(vocabulary)
        rows = self._text_rows(vocabulary, text_embeddings)
        self.roi_head.set_vocabulary(vocabulary, rows[:-1], rows[-1])
        self.vocabulary = vocabulary
        self._has_texts = True
        if getattr(self, 'dataset_meta', None):  # the very dict that MMDetection's visualizers hold
            self.dataset_meta['classes'] = vocabulary.names
            for part in ('base_classes', 'novel_classes'):
                self.dataset_meta.pop(part, None)

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Levels of the neck for images ``(B, 3, H, W)``, in evaluation with the VLM's view of any region."""
        maps = self.backbone(batch_inputs)
        levels = self.neck(maps[:-1] if self.backbone.with_dense else maps)
        return levels if self.training else LevelsWithRegions(levels, self._regions(maps[-1]))

    def _regions(self, last: Tensor) -> RegionFeatures:
        if self.region_pooling == 'dense':
            return DenseRegions(last, self.tower.patch_size)
        cell = self.tower.block_strides[-1]
        size = tuple(side // pixels for side, pixels in zip(self.tower.image_size, cell, strict=True))
        return PooledRegions(last, cell, self.tower.pool, size)

    @torch.no_grad()
    def _text_rows(self, vocabulary: Vocabulary, source: str | Path | Tensor | None) -> Tensor:
        """Normalised embeddings ``(K + 1, C)`` of the classes and the word "background"."""
        if isinstance(source, Tensor):
            if source.shape != (len(vocabulary) + 1, self.tower.embed_dim):
                expected = (len(vocabulary) + 1, self.tower.embed_dim)
                raise ValueError(
                    f'text_embeddings must be {expected}, a row per class and one of the word "background", '
                    f'got {tuple(source.shape)}'
                )
            rows = source
        elif source is not None:
            rows = load_class_embeddings(source, [*vocabulary.names, BACKGROUND], self.tower.embed_dim)
        else:
            vlm, words = load_vlm(**self.vlm_source), (vocabulary, self.background_words)
            rows = torch.cat([class_embeddings(vlm, part, self.templates) for part in words])
        return F.normalize(rows.float(), dim=-1)

    def _check_backbone(self) -> None:
        if any(p.requires_grad for p in self.backbone.parameters()):
            raise ValueError('FViT keeps its backbone frozen: leave trainable and frozen_stages of the backbone out')
        if self.region_pooling not in ('dense', 'head'):
            raise ValueError(f"region_pooling must be 'dense' or 'head', got {self.region_pooling!r}")
        if self.backbone.with_dense != (self.region_pooling == 'dense'):
            raise ValueError("set with_dense=True in the backbone for region_pooling='dense', and only for it")
        if self.region_pooling == 'head' and len(set(self.tower.block_strides)) == 1:
            raise ValueError(
                "region_pooling='head' cuts regions out of the last stage of a convolutional tower; a transformer's "
                "tokens have seen the whole image: take region_pooling='dense'"
            )
        if self.region_pooling == 'head' and self.backbone.out_indices[-1] != len(self.tower.blocks) - 1:
            raise ValueError("region_pooling='head' needs the last stage as the last of the backbone's out_indices")
        if self.region_pooling == 'head' and self.backbone.strides is not None:
            raise ValueError("region_pooling='head' cuts regions out of the last stage as it is: set strides=None")

    def records(self) -> dict[str, Tensor]:
        """What a checkpoint tells beside its weights, ``(32,)`` uint8 each: digests of class names and dense mode."""
        names = json.dumps(self.vocabulary.names)
        return {_VOCABULARY_DIGEST: _digest_of(names), _MODE_DIGEST: _digest_of(self.backbone.dense_mode)}

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Take the tower from this model if a checkpoint was saved without it; refuse another mode, other texts."""
        self._tower_record = None
        self._check_records({key: state_dict.pop(prefix + key, None) for key in self.records()})
        tower = state_dict.pop(prefix + _TOWER_DIGEST, None)
        if tower is not None:
            if not torch.equal(tower.cpu(), self._tower_digest()):
                raise RuntimeError(
                    'this checkpoint was saved without its frozen tower, which is not the one of this model: set '
                    'backbone.checkpoint to what the detector was trained on'
                )
            own = self.tower.state_dict(prefix=prefix + _TOWER)
            state_dict.update({key: value for key, value in own.items() if key not in state_dict})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_records(self, stored: Mapping[str, Tensor | None]) -> None:
        own = self.records()
        differ = [key for key, value in stored.items() if value is not None and not torch.equal(value.cpu(), own[key])]
        if _MODE_DIGEST in differ:
            raise RuntimeError(
                f'this checkpoint was trained in another dense mode than {self.backbone.dense_mode!r}: set '
                'backbone.dense_mode'
            )
        if _VOCABULARY_DIGEST in differ and not self._has_texts:
            raise RuntimeError(
                'this checkpoint holds the text embeddings of another vocabulary, and the config none: set '
                'backbone.checkpoint or text_embeddings, or the vocabulary that the detector was trained with'
            )

    def _tower_digest(self) -> Tensor:
        """SHA-256 of the frozen tower's weights, made once; a moving average asks for the state at every step."""
        if self._tower_record is None:
            self._tower_record = _as_tensor(state_digest(self.tower.state_dict()))
        return self._tower_record


def _complete_state(detector: FViT, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    state_dict.update({prefix + key: value for key, value in detector.records().items()})
    if not detector.save_tower:
        for key in [key for key in state_dict if key.startswith(prefix + _TOWER)]:
            del state_dict[key]
        state_dict[prefix + _TOWER_DIGEST] = detector._tower_digest()


def _digest_of(text: str) -> Tensor:
    return _as_tensor(sha256(text.encode()).hexdigest())


def _as_tensor(digest: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)
