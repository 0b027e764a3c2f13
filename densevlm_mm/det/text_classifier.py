"""A linear classifier whose rows are the text embeddings of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densevlm_mm.models.region_classifier import cosines
from densevlm_mm.registry import MODELS

_SHORTEST = 1e-6  # length below which a feature has no direction


@MODELS.register_module()
class TextEmbeddingClassifier(nn.Module):
    """Temperature times the cosine of a feature with each text, as ``cls_predictor_cfg`` of MMDetection's box heads.

    The box heads of F-VLM (Kuo et al., arXiv:2209.15639) and F-ViT (CLIPSelf, Wu et al., arXiv:2310.01403). The texts
    come with `set_texts`, and again whenever the vocabulary changes; nothing that trains depends on their number. They
    are saved: a model that was given none takes those of the checkpoint, one that was keeps its own.

    Args:
        in_features: Width of the features.
        out_features: Number of classes and one, as the box head has it. Overruled by the texts.
        temperature: Factor on the cosines.
        learn_temperature: Train it, from this value on. If not, it stays what it is here, whatever a checkpoint says.
        background: What stands for "none of the classes": 'text', the embedding of the word; 'learned', a direction
            that starts there and trains; 'zero', a logit of 0.
        embed_dim: Width of the texts if `project`.
        project: Put a linear layer before the comparison. The features of a box head have passed a ReLU; without this
            they cannot point where a text has negative entries.

    Raises:
        ValueError: For options outside these.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        temperature: float = 50.0,
        learn_temperature: bool = True,
        background: Literal['text', 'learned', 'zero'] = 'text',
        embed_dim: int | None = None,
        project: bool = False,
    ) -> None:
        super().__init__()
        if background not in ('text', 'learned', 'zero'):
            raise ValueError(f"background must be 'text', 'learned' or 'zero', got {background!r}")
        if not temperature > 0:
            raise ValueError(f'temperature must be positive, got {temperature}')
        if project != (embed_dim is not None):
            raise ValueError('project=True and embed_dim, the width of the texts, go together')
        self.in_features = in_features
        self.out_features = out_features
        self.text_width = embed_dim if project else in_features
        self.background = background
        self.learn_temperature = learn_temperature
        self.projection = nn.Linear(in_features, embed_dim) if project else nn.Identity()
        # No tensor here may be called weight or bias: init_weights of the box head fills what is, with noise.
        if learn_temperature:
            self.temperature = nn.Parameter(torch.tensor(float(temperature)))
        else:
            self.register_buffer('temperature', torch.tensor(float(temperature)))
        # zero until the first texts are known
        self.learned_background = nn.Parameter(torch.zeros(self.text_width)) if background == 'learned' else None
        self.register_buffer('texts', None)
        self.register_buffer('background_text', None)
        self._keep_texts = False

    def set_texts(self, texts: Tensor, background: Tensor) -> None:
        """Classify by these texts from now on, also after a checkpoint is loaded.

        A learned background starts at the first texts and is left alone by later ones.

        Args:
            texts: ``(K, C)``, an embedding per class in the order of the labels, of any length.
            background: ``(C,)``, that of the word "background".

        Raises:
            ValueError: If the shapes do not fit each other or the features, or values are not finite.
        """
        self._check_texts(texts, background)
        self._hold(F.normalize(texts.float(), dim=-1), F.normalize(background.float(), dim=-1))
        self._keep_texts = True

    def text_columns(self) -> Tensor:
        """Embeddings ``(K + 1, C)`` of the classes and the word "background", L2-normalised, fp32.

        That is what a VLM compares regions with, whatever this classifier's own background is.

        Raises:
            RuntimeError: If there are no texts yet.
        """
        if self.texts is None:
            raise RuntimeError(
                'the classifier has no texts yet: give the detector a vocabulary with a text tower or a file of '
                'embeddings (set_vocabulary), or load a checkpoint of a trained detector'
            )
        return torch.cat([self.texts, self.background_text[None]]).float()

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K + 1)`` of features (N, in_features), background last, in fp32 also under autocast.

        A feature of zeros has no direction: its logits are 0, and so is its gradient.
        """
        columns = self._columns()
        x = self.projection(x).float()
        # a division by next to nothing would make the gradient huge
        x = x.masked_fill(x.detach().norm(dim=-1, keepdim=True) < _SHORTEST, 0.0)
        return self.temperature.float() * cosines(x, columns)

    def extra_repr(self) -> str:
        """Widths and options, for ``print(model)``."""
        temperature = f'{self.temperature.item():.4g} ({"learned" if self.learn_temperature else "fixed"})'
        return (
            f'in_features={self.in_features}, out_features={self.out_features}, text_width={self.text_width}, '
            f'temperature={temperature}, background={self.background!r}'
        )

    def _columns(self) -> Tensor:
        """What features are compared with ``(K + 1, C)``."""
        columns = self.text_columns()
        if self.background == 'text':
            return columns
        is_learned = self.background == 'learned'
        own = F.normalize(self.learned_background.float(), dim=0) if is_learned else torch.zeros_like(columns[-1])
        return torch.cat([columns[:-1], own[None]])

    def _check_texts(self, texts: Tensor, background: Tensor) -> None:
        if texts.ndim != 2 or not len(texts) or background.shape != texts.shape[1:]:
            raise ValueError(
                f'texts must be (K, C) and the background (C,), got {tuple(texts.shape)} and {tuple(background.shape)}'
            )
        width = texts.shape[1]
        if width != self.text_width:
            remedy = f'embed_dim={width} in its cls_predictor_cfg'
            if isinstance(self.projection, nn.Identity):
                remedy = f'fc_out_channels={width} in the box head, or project=True and {remedy}'
            raise ValueError(f'texts are {width} wide, but what they are compared with {self.text_width}: set {remedy}')
        if not (texts.isfinite().all() and background.isfinite().all()):
            raise ValueError('texts hold values that are not finite')

    @torch.no_grad()
    def _hold(self, texts: Tensor, background: Tensor) -> None:
        device = self.temperature.device
        self.texts = texts.detach().to(device, torch.float32, copy=True)
        self.background_text = background.detach().to(device, torch.float32, copy=True)
        self.out_features = len(texts) + 1
        if self.learned_background is not None and not self.learned_background.any():
            self.learned_background.copy_(self.background_text)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Take a checkpoint's texts unless there are own ones, and no temperature where it is fixed."""
        state_dict, errors = dict(state_dict), args[-1]
        texts, background = (state_dict.pop(prefix + name, None) for name in ('texts', 'background_text'))
        if not self._keep_texts and texts is not None and background is not None:
            try:
                self._check_texts(texts, background)
                self._hold(texts, background)
            except ValueError as error:
                errors.append(f'{prefix}texts: {error}')
        kept = {'texts': self.texts, 'background_text': self.background_text}
        if not self.learn_temperature:
            kept['temperature'] = self.temperature
        state_dict.update({prefix + name: value for name, value in kept.items() if value is not None})
        super()._load_from_state_dict(state_dict, prefix, *args)
