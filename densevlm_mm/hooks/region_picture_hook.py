"""Pictures of what a model sees in a fixed set of images, while it learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader

from densevlm_mm.datasets.grids import grid_boxes, normalize_boxes
from densevlm_mm.datasets.transforms import LoadImage, ResizeLongestPad
from densevlm_mm.models import DenseVLM
from densevlm_mm.models.region_classifier import RegionModel, cosines
from densevlm_mm.registry import HOOKS
from densevlm_mm.visualization import draw_regions
from densevlm_mm.vlm import Vocabulary, build_vocabulary, class_embeddings
from densevlm_mm.vlm.region_pooling import pool_boxes
from densevlm_mm.vlm.text_embeddings import compute_class_embeddings


@HOOKS.register_module()
class RegionPictureHook(Hook):
    """Draw a grid of regions, with retrieved classes and confidences, over always the same images.

    Before the first iteration, every so many, and after each validation, pictures named ``regions0_student``,
    ``regions1_student``, ... go to the runner's visualizer: into the work directory, and to TensorBoard where the
    config has that backend. The student is shown as it trains, not blended. Of a `DenseVLM` with its own vocabulary and
    its teacher loaded, what the teacher retrieves is drawn too, once: ``regions0_teacher``, ... Nothing of the training
    is touched: no weight, mode or random number.

    Args:
        draw: Whether to draw at all.
        interval: Iterations from one set of pictures to the next.
        images: Paths of images; None takes the first of the training data (or of those that are evaluated).
        num_images: How many of these.
        size: Longest side, in px, that the images are resized to for the model. None: as the model's tower was trained.
        grid: Rows and columns of regions.
        vocabulary: Classes to retrieve; anything that `build_vocabulary` takes. None: the model's own, which are those
            that a `DenseVLM` trains with, and the ``eval_vocabulary`` of others.
        templates: Prompt templates of a vocabulary that is given.
        score_thr: Confidence below which regions are drawn as dropped. None: that of the model's loss, else 0.

    Raises:
        ValueError: ``interval`` or ``num_images`` is not positive.
    """

    priority = 'LOW'  # after hooks that give the model other weights for a validation

    def __init__(
        self,
        *,
        draw: bool = True,
        interval: int = 500,
        images: Sequence[str] | None = None,
        num_images: int = 4,
        size: int | None = None,
        grid: tuple[int, int] = (4, 4),
        vocabulary: Any = None,
        templates: str | Sequence[str] = 'vild',
        score_thr: float | None = None,
    ) -> None:
        if interval < 1 or num_images < 1:
            raise ValueError(f'interval and num_images must be positive, got {interval} and {num_images}')
        self.draw = draw
        self.interval = interval
        self.images = images
        self.num_images = num_images
        self.size = size
        self.grid = grid
        self.vocabulary = None if vocabulary is None else build_vocabulary(vocabulary)
        self.templates = templates
        self.score_thr = score_thr
        self._sources: list[dict] = []
        self._last_step: int | None = None

    def before_train(self, runner: Runner) -> None:
        """Draw what training starts from, and what the teacher says."""
        if self.draw:
            if isinstance(runner.model, FullyShardedDataParallel):
                raise TypeError('RegionPictureHook draws in one process, where FSDP leaves no whole model: remove it')
            self._sources = self._find_images(runner.train_dataloader)
            self._draw(runner, runner.iter, with_teacher=True)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        """Draw every so many iterations."""
        if self.draw and self.every_n_train_iters(runner, self.interval):
            self._draw(runner, runner.iter + 1)

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Draw after a validation, unless these weights are drawn already."""
        if self.draw and self._last_step != runner.iter:
            self._sources = self._sources or self._find_images(runner.val_dataloader)
            self._draw(runner, runner.iter)

    @master_only
    @torch.no_grad()
    def _draw(self, runner: Runner, step: int, *, with_teacher: bool = False) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(model, RegionModel):
            raise TypeError(f'RegionPictureHook needs a model that classifies regions, not {type(model).__name__}')
        self._last_step = step
        with _evaluating(model.vlm):
            classes = self._classes(model)
            for index, source in enumerate(self._sources):
                region = self._load(source, model)
                features = {'student': pool_boxes(model.vlm.encode_dense(region.inputs), region.boxes)[0]}
                texts = {'student': classes.texts}
                if with_teacher and self._has_teacher(model):
                    features['teacher'] = model.teacher(region.inputs, region.boxes)[0]
                    texts['teacher'] = model.teacher_text
                for who, values in features.items():
                    labels, scores = _retrieve(values, texts[who], classes.scale)
                    pixels = grid_boxes(region.image.shape[1], region.image.shape[0], *self.grid)
                    picture = draw_regions(
                        region.image, pixels, labels, scores, classes.vocabulary, score_thr=self._threshold(model)
                    )
                    runner.visualizer.add_image(f'regions{index}_{who}', picture, step)

    def _find_images(self, loader: DataLoader) -> list[dict]:
        """Entries of the images, with ``img_path``.

        Raises:
            ValueError: None are given, and the data set tells no paths.
        """
        if self.images is not None:
            return [{'img_path': path} for path in self.images]
        dataset = loader.dataset
        if not hasattr(dataset, 'get_data_info'):
            raise ValueError(f'{type(dataset).__name__} tells no paths of its images: set images of RegionPictureHook')
        return [dataset.get_data_info(i) for i in range(min(self.num_images, len(dataset)))]

    def _load(self, source: Mapping[str, Any], model: RegionModel) -> _Regions:
        size = self.size or max(model.vlm.visual.image_size)
        results = ResizeLongestPad(size).transform(LoadImage().transform(dict(source)))
        pixels = torch.from_numpy(results['img']).permute(2, 0, 1).contiguous()
        inputs = model.data_preprocessor({'inputs': pixels[None]})['inputs']
        height, width = results['ori_shape']
        boxes = normalize_boxes(grid_boxes(width, height, *self.grid), scale=results['scale'], size=size)
        return _Regions(results['ori_img'], inputs, boxes[None].to(inputs.device))

    def _classes(self, model: RegionModel) -> _Classes:
        """What the student retrieves from.

        Raises:
            ValueError: None are given, and the model has none.
        """
        if self.vocabulary is None and isinstance(model, DenseVLM):
            return _Classes(model.vocabulary, model.student_text, model.alignment_loss.logit_scale)
        given = self.vocabulary is not None
        vocabulary = self.vocabulary if given else model.eval_vocabulary
        if vocabulary is None:
            raise ValueError(f'{type(model).__name__} has no vocabulary: set vocabulary of RegionPictureHook')
        vlm = model.vlm
        # the embeddings of a text tower in training are not worth a file on disk
        trains = any(parameter.requires_grad for parameter in vlm.text.parameters())
        embed = compute_class_embeddings if trains else class_embeddings
        texts = embed(vlm, vocabulary, self.templates if given else model.eval_templates)
        return _Classes(vocabulary, F.normalize(texts, dim=-1), vlm.logit_scale.exp().item())

    def _has_teacher(self, model: RegionModel) -> bool:
        return self.vocabulary is None and isinstance(model, DenseVLM) and model.teacher is not None

    def _threshold(self, model: RegionModel) -> float:
        if self.score_thr is not None:
            return self.score_thr
        return model.alignment_loss.score_thr if isinstance(model, DenseVLM) else 0.0


class _Regions(NamedTuple):
    """A grid of regions: the image ``(H, W, 3)``, the model's inputs ``(1, 3, S, S)``, boxes ``(1, N, 4)`` in 0..1."""

    image: np.ndarray
    inputs: Tensor
    boxes: Tensor


class _Classes(NamedTuple):
    """What to retrieve from: ``texts`` (K, C), and the factor on cosines."""

    vocabulary: Vocabulary
    texts: Tensor
    scale: float


def _retrieve(features: Tensor, texts: Tensor, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Most probable of K classes for each of ``(N, C)`` features, and its probability."""
    # texts keep their norms, as in the loss
    confidence, label = (scale * cosines(features, texts.float())).softmax(-1).max(-1)
    return label.cpu().numpy(), confidence.cpu().numpy()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and each part's own mode again after it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
