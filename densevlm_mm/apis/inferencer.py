"""From images and class names to results and pictures, in one object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.structures import BaseDataElement
from PIL import Image
from rich.progress import track
from torch import Tensor

from densevlm_mm.datasets.image_file import BadImageError
from densevlm_mm.evaluation.report import write_json
from densevlm_mm.models import VLMModel
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import Vocabulary
from densevlm_mm.vlm.checkpoints import save_atomically

from .clip_tasks import ClipTask, Grid, RegionTask, SimilarityTask
from .configured_tasks import ConfiguredTask, DetectTask, SegmentTask, training_free_source
from .image_inputs import ImageInputs, ImageSource, list_images
from .model_sources import ConfigSource, clip_source, find_config

TaskName = Literal['regions', 'segment', 'detect', 'similarity']
_CLIP_TASKS: dict[str, type[ClipTask]] = {'regions': RegionTask, 'similarity': SimilarityTask}
TASKS = ('regions', 'segment', 'detect', 'similarity')


class Results(TypedDict):
    """What `Inferencer` gives: a prediction per image, and its pictures if they were asked for."""

    predictions: list[Any]
    visualization: list[np.ndarray]


class Inferencer:
    """Ask a CLIP, detector or segmentor about images, by the names of classes.

    Called as the inferencers of MMDetection and MMSegmentation are::

        inferencer = Inferencer('densevlm.pth', task='segment', vocabulary=['cat', 'sofa', 'wall'])
        result = inferencer('photos/', out_dir='outputs')

    Args:
        model: A checkpoint of a CLIP, in any format that `load_vlm` takes; an architecture, with `weights`; or a
            config (its path, its name in this package, or a `Config`), with `weights` unless it names some.
        task: 'regions' tells the class of each cell of a grid, or of given boxes; 'segment' that of each pixel, by the
            segmentor of a config or else by the CLIP alone (`TrainingFreeSegmentor`); 'detect' finds objects, by the
            detector of a config; 'similarity' maps the cosine of each pixel with each name.
        vocabulary: Class names: a list, a shipped name, a file, or what else `build_vocabulary` takes. None takes those
            of the config.
        weights: Checkpoint for an architecture or a config.
        arch: Architecture of a checkpoint that leaves it open.
        device: Where it runs; None takes the best there is.
        dense_mode: See `load_vlm`.
        templates: Prompt templates of a CLIP; None takes the config's, else 'vild'.
        size: Side that images are resized to for a CLIP, in px: the longest; for 'segment' the shorter. None takes the
            config's, else 512; for 'segment' 448.

    Raises:
        FileNotFoundError: A file is missing.
        CheckpointError: A file is damaged, holds code or does not fit.
        ValueError: For an unknown task, a model of another one, no class names, no weights, or options that do not
            belong together.
    """

    def __init__(
        self,
        model: str | Path | Mapping[str, Any] | Config,
        task: TaskName = 'regions',
        vocabulary: Any = None,
        *,
        weights: str | Path | None = None,
        arch: str | Mapping[str, Any] | None = None,
        device: str | None = None,
        dense_mode: str | None = None,
        templates: str | Sequence[str] | None = None,
        size: int | None = None,
    ) -> None:
        if task not in TASKS:
            raise ValueError(f'task must be one of {TASKS}, got {task!r}')
        self.task = task
        device = device or get_device()
        config = find_config(model) if isinstance(model, str | Path | Config) else None
        options = {'weights': weights, 'arch': arch, 'dense_mode': dense_mode}
        look = {'templates': templates, 'size': size}
        if _is_whole_model(config, task):
            _refuse(arch=arch, dense_mode=dense_mode, **look)
            if weights is None:
                _refuse_random_weights(config)
            source = ConfigSource(config=config, weights=None if weights is None else str(weights))
        elif task == 'detect':
            raise ValueError(
                f'{model} is no detector: give the config of one as model and its checkpoint as weights, such as '
                "Inferencer('configs/fvit/fvit_vitb16_ov-coco_densevlm.py', 'detect', weights=CHECKPOINT)"
            )
        else:
            source = clip_source(model if config is None else config, **options)
        self._task: ClipTask | ConfiguredTask
        if task in _CLIP_TASKS:
            self._task = _CLIP_TASKS[task](source, vocabulary, device=device, **look)
        elif task == 'detect':
            self._task = DetectTask(source, vocabulary, device=device)
        elif isinstance(source, ConfigSource):
            self._task = SegmentTask(source, vocabulary, device=device)
        else:
            self._task = SegmentTask(training_free_source(source, vocabulary, **look), None, device=device)

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes at hand; labels are positions in it."""
        return self._task.vocabulary

    def set_vocabulary(self, vocabulary: Any) -> None:
        """Ask for other classes from now on; the model stays as it is.

        Raises:
            ValueError: If it is no vocabulary, or the model knows no classes but its own.
        """
        self._task.set_vocabulary(vocabulary)

    @property
    def dense_modes(self) -> tuple[str, ...]:
        """Dense modes of the CLIP; empty for a model without one to choose."""
        return () if self._task.vlm is None else tuple(self._task.vlm.visual.dense_modes)

    @property
    def dense_mode(self) -> str | None:
        """How the CLIP makes dense features, which can be changed; None for a model without one."""
        return None if self._task.vlm is None else self._task.vlm.dense_mode

    @dense_mode.setter
    def dense_mode(self, mode: str) -> None:
        if self._task.vlm is None:
            raise ValueError(f'the dense mode belongs to the checkpoint of task {self.task!r} and cannot be chosen')
        self._task.vlm.dense_mode = self._task.vlm.visual.check_mode(mode)

    def __call__(
        self,
        inputs: ImageInputs,
        *,
        batch_size: int = 1,
        boxes: Sequence[Any] | None = None,
        grid: Grid = (4, 4),
        score_thr: float = 0.3,
        return_vis: bool = False,
        return_datasamples: bool = False,
        out_dir: str | Path = '',
        no_save_vis: bool = False,
        no_save_pred: bool = False,
        show_progress: bool = True,
    ) -> Results:
        """Results of one image or many.

        Args:
            inputs: See `list_images`; arrays are BGR.
            batch_size: Images at a time; those that become equally large share a pass.
            boxes: For 'regions', instead of the grid: per image ``(N, 4)``, xyxy in px; of one image, without the list.
            grid: For 'regions': rows and columns.
            score_thr: Below it, regions are drawn as dropped and detections not at all. Predictions hold all of them.
            return_vis: Also give pictures, RGB uint8 ``(H', W', 3)``; small images are enlarged for them.
            return_datasamples: Give data samples instead of plain numbers and text.
            out_dir: Folder for ``preds/NAME.json`` and ``vis/NAME.png``; '' for none.
            no_save_vis: Leave the pictures out.
            no_save_pred: Leave the JSON files out.
            show_progress: Show a bar for several images.

        Returns:
            ``predictions``, one per image: ``image`` (its path, or its name), ``size`` ``[H, W]``, and
            by task: 'regions' and 'detect' ``bboxes`` (xyxy, px), ``labels``, ``names``, ``scores``, for 'detect' also
            ``splits`` and ``masks`` if there are any; 'segment' ``labels``, ``names``, ``shares``, ``masks`` (COCO's
            run-length encoding); 'similarity' ``labels``, ``names``, ``lowest``, ``highest``, ``points``. A damaged
            image among several has ``image`` and ``error`` instead (None among data samples). ``visualization``: the
            pictures, of images that could be read.

        Raises:
            FileNotFoundError, BadImageError, ValueError: See `list_images`, and `ImageSource.read` for a single image.
        """
        sources = list_images(inputs)
        regions = self._regions(boxes, grid, len(sources))
        _check_batch_size(batch_size)
        draws = return_vis or (bool(out_dir) and not no_save_vis)
        results: Results = {'predictions': [], 'visualization': []}
        shown = iter(track(range(len(sources)), 'Inference') if show_progress and len(sources) > 1 else sources)
        for first in range(0, len(sources), batch_size):
            batch = slice(first, first + batch_size)
            for found in self._run(sources[batch], regions[batch] if isinstance(regions, list) else regions):
                if isinstance(found.sample, BadImageError) and len(sources) == 1:
                    raise found.sample
                picture = self._draw(found, score_thr) if draws else None
                if out_dir:
                    _save(Path(out_dir), found, None if no_save_vis else picture, save_prediction=not no_save_pred)
                results['predictions'].append(found.as_datasample() if return_datasamples else found.prediction)
                results['visualization'] += [picture] if return_vis and picture is not None else []
                next(shown)
        next(shown, None)  # the bar ends
        return results

    def _regions(self, boxes: Sequence[Any] | None, grid: Grid, count: int) -> list[Tensor] | Grid:
        """What a `RegionTask` takes of several images."""
        if boxes is None:
            if len(grid) != 2 or min(grid) < 1:
                raise ValueError(f'grid must be rows and columns of at least 1, got {grid}')
            return tuple(grid)
        if self.task != 'regions':
            raise ValueError(f"boxes are for task 'regions', not {self.task!r}")
        of_one = count == 1 and np.ndim(boxes) == 2
        of_images = [torch.as_tensor(one, dtype=torch.float32) for one in ([boxes] if of_one else boxes)]
        if len(of_images) != count or any(one.ndim != 2 or one.shape[1] != 4 for one in of_images):
            shapes = [tuple(one.shape) for one in of_images]
            raise ValueError(f'boxes must be (N, 4) for each of {count} images, got {shapes}')
        return of_images

    def _run(self, sources: list[ImageSource], regions: list[Tensor] | Grid) -> Iterator[_Found]:
        """Results of images in their order; damaged ones have an error in the place of a sample."""
        images: list[np.ndarray | BadImageError] = [_read(source) for source in sources]
        good = [i for i, image in enumerate(images) if not isinstance(image, BadImageError)]
        chosen = [regions[i] for i in good] if isinstance(regions, list) else regions
        samples = iter(self._task.predict([images[i] for i in good], chosen) if good else ())
        for source, image in zip(sources, images, strict=True):
            facts: dict[str, Any] = {'image': source.path or source.name}
            if isinstance(image, BadImageError):
                yield _Found(source.name, None, image, {**facts, 'error': str(image)})
                continue
            sample, size = next(samples), list(image.shape[:2])
            meta = {'img_path': source.path, 'ori_shape': image.shape[:2], 'vocabulary': self.vocabulary.names}
            sample.set_metainfo(meta)
            yield _Found(source.name, image, sample, {**facts, 'size': size, **self._task.as_dict(sample)})

    def _draw(self, found: _Found, score_thr: float) -> np.ndarray | None:
        if found.image is None:
            return None
        return self._task.draw(found.image, found.sample, score_thr=score_thr)


class _Found(NamedTuple):
    """An image and what was found in it.

    Attributes:
        name: What its files are called.
        image: RGB uint8; None if it could not be read.
        sample: The data sample; why there is none.
        prediction: The same, plain.
    """

    name: str
    image: np.ndarray | None
    sample: BaseDataElement | BadImageError
    prediction: dict[str, Any]

    def as_datasample(self) -> BaseDataElement | None:
        return None if isinstance(self.sample, BadImageError) else self.sample


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {batch_size}')


def _read(source: ImageSource) -> np.ndarray | BadImageError:
    try:
        return source.read()
    except BadImageError as error:  # among many images, one should not cost the others
        return error


def _is_whole_model(config: Config | None, task: str) -> bool:
    """Whether a config's model does the task as it is, rather than the CLIP in it."""
    if config is None or task in _CLIP_TASKS:
        return False
    if task == 'detect' or 'model' not in config:
        return True
    kind = MODELS.get(config.model.type)  # None for a type of another scope, which is no model of a CLIP
    # region classifiers and distillers hold a CLIP, which segments without training
    return kind is None or not issubclass(kind, VLMModel)


def _refuse(**options: Any) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f'{", ".join(given)}: set in the config of a detector or segmentor, not here')


def _refuse_random_weights(config: Config) -> None:
    """Refuse a detector or segmentor without weights, unless all of them are those of a CLIP that it names."""
    model = config.get('model') or {}
    kind = MODELS.get(model['type']) if model else None
    # what takes the file of a CLIP for its own has no other weights
    if hasattr(kind, 'load_weights') and (model.get('vlm') or {}).get('checkpoint'):
        return
    name = str(model.get('type', 'the model')).rpartition('.')[2]
    raise ValueError(f'{name} of this config would have random weights, which say nothing: give weights=CHECKPOINT')


def _save(folder: Path, found: _Found, picture: np.ndarray | None, *, save_prediction: bool) -> None:
    """Write what there is about an image, each file whole or not at all."""
    if save_prediction:
        write_json(folder / 'preds' / f'{found.name}.json', found.prediction)
    if picture is not None:
        image = Image.fromarray(picture)
        save_atomically(folder / 'vis' / f'{found.name}.png', lambda file: image.save(file, format='png'))
