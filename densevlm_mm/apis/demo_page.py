"""What the demo page does when someone presses Run, without any of its widgets."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.logging import print_log
from PIL import Image

from densevlm_mm.vlm import Vocabulary

from .demo_inputs import Limits, PageError, describe_upload, read_names, read_upload

if TYPE_CHECKING:
    from .inferencer import Inferencer

OWN_MODE = "the file's"
_BOXES = ('class', 'kind', 'confidence (%)', 'box: left, top, right, bottom (px)')
COLUMNS: dict[str, tuple[str, ...]] = {
    'regions': _BOXES,
    'segment': ('class', 'kind', 'share of the image (%)'),
    'detect': _BOXES,
    'similarity': ('class', 'kind', 'lowest cosine', 'highest cosine'),
}


@dataclass(frozen=True)
class Request:
    """What someone wants to see.

    Attributes:
        path: The uploaded file; None if there is none yet.
        names: Class names, as `demo_inputs.parse_names` reads them.
        task: 'regions', 'segment', 'detect' or 'similarity'.
        score_thr: Confidence in 0..1 that regions and detections must have.
        grid: Rows and columns of the regions.
        dense_mode: Dense mode of the towers, or `OWN_MODE`: that of each file.
    """

    path: str | None
    names: str
    task: str = 'regions'
    score_thr: float = 0.3
    grid: int = 4
    dense_mode: str = OWN_MODE


@dataclass(frozen=True)
class Answer:
    """What the page shows.

    Attributes:
        message: A line about it.
        pictures: Titles of the models and RGB uint8 pictures ``(H, W, 3)``.
        columns: Headings of the table.
        rows: Its cells.
    """

    message: str
    pictures: list[tuple[str, np.ndarray]]
    columns: list[str]
    rows: list[list[str | float]]

    def to_json(self) -> list[dict[str, str | float]]:
        """The table as one mapping per row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


@dataclass
class DemoPage:
    """Models, and what the page asks of them.

    A model is built when a task first needs it and kept.

    Args:
        models: For each task, for each title of a model, what builds its `Inferencer`.
        vocabulary: The classes to begin with.
        limits: What images may be.
    """

    models: Mapping[str, Mapping[str, Callable[[], Inferencer]]]
    vocabulary: Vocabulary
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.models) - set(COLUMNS))
        if unknown or not self.models:
            raise ValueError(f'the tasks of the page must be some of {list(COLUMNS)}, got {sorted(self.models)}')
        self._built: dict[tuple[str, str], tuple[Inferencer, str]] = {}

    @property
    def tasks(self) -> list[str]:
        """Tasks to choose from."""
        return list(self.models)

    @property
    def num_pictures(self) -> int:
        """Pictures that an answer has at most."""
        return max(map(len, self.models.values()))

    def prepare(self, task: str) -> list[Inferencer]:
        """Build the models of a task now rather than at the first run.

        Errors are those of `Inferencer`.
        """
        return [self._inferencer(task, title)[0] for title in self.models[task]]

    def dense_modes(self) -> list[str]:
        """Dense modes to choose from: `OWN_MODE`, and those that every tower of the first task defines."""
        first, *others = (inferencer.dense_modes for inferencer in self.prepare(self.tasks[0]))
        return [OWN_MODE, *(mode for mode in first if all(mode in modes for modes in others))]

    def preview(self, path: str | None) -> tuple[str, Image.Image | None]:
        """A line about an upload, and the upright image; no image when there is none to show."""
        if path is None:
            return '', None
        try:
            image = read_upload(path, self.limits)
        except PageError as error:
            return str(error), None
        return describe_upload(path, image), image

    def run(self, request: Request) -> Answer:
        """Answer a request.

        Raises:
            PageError: With a sentence for the page, whatever went wrong.
        """
        image = read_upload(request.path, self.limits)
        vocabulary = read_names(request.names, self.vocabulary)
        try:
            return self._answer(request, image, vocabulary)
        except Exception as error:  # whatever it is, the page goes on and shows no stack trace
            raise PageError(_explain(error)) from error

    def _answer(self, request: Request, image: Image.Image, vocabulary: Vocabulary) -> Answer:
        titles, pictures, rows = list(self.models[request.task]), [], []
        for title in titles:
            inferencer, own_mode = self._inferencer(request.task, title)
            if request.task != 'detect':
                inferencer.dense_mode = own_mode if request.dense_mode == OWN_MODE else request.dense_mode
            if inferencer.vocabulary != vocabulary:
                inferencer.set_vocabulary(vocabulary)
            grid = (request.grid, request.grid)
            result = inferencer(image, score_thr=request.score_thr, grid=grid, return_vis=True)
            pictures.append((title, result['visualization'][0]))
            table = result_rows(request.task, result['predictions'][0], vocabulary, score_thr=request.score_thr)
            rows += [[title, *row] if len(titles) > 1 else row for row in table]
        columns = ['model'] * (len(titles) > 1) + list(COLUMNS[request.task])
        message = describe_upload(request.path, image) + ('' if rows else '; nothing is above the threshold')
        return Answer(message, pictures, columns, rows)

    def _inferencer(self, task: str, title: str) -> tuple[Inferencer, str]:
        if (task, title) not in self._built:
            inferencer = self.models[task][title]()
            self._built[task, title] = inferencer, inferencer.dense_mode
        return self._built[task, title]


def result_rows(
    task: str, prediction: Mapping[str, Any], vocabulary: Vocabulary, *, score_thr: float = 0.0
) -> list[list[str | float]]:
    """Rows of the table of one image's prediction, the most certain or largest first.

    Args:
        task: As of `Inferencer`.
        prediction: What `Inferencer` gives for an image.
        vocabulary: Its classes.
        score_thr: Confidence below which boxes are left out.
    """
    names = [
        (name, 'thing' if vocabulary.is_thing[label] else 'stuff')
        for name, label in zip(prediction['names'], prediction['labels'], strict=True)
    ]
    if task == 'segment':
        cells = [(round(100 * share, 1),) for share in prediction['shares']]
        order = prediction['shares']
    elif task == 'similarity':
        order = prediction['highest']
        cells = [(round(low, 3), round(high, 3)) for low, high in zip(prediction['lowest'], order, strict=True)]
    else:
        order = prediction['scores']
        boxes = [', '.join(f'{side:.0f}' for side in box) for box in prediction['bboxes']]
        cells = [(round(100 * score, 1), box) for score, box in zip(order, boxes, strict=True)]
    kept = [i for i in range(len(names)) if 'scores' not in prediction or order[i] >= score_thr]
    return [[*names[i], *cells[i]] for i in sorted(kept, key=lambda i: -order[i])]


def _explain(error: Exception) -> str:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return 'There is not enough memory for this: choose fewer classes, or start with a smaller --size.'
    if isinstance(error, ValueError):  # what the library says to whoever gave it something that it cannot take
        return f'This cannot be shown: {error}'
    print_log(''.join(traceback.format_exception(error)), logger='current', level=logging.ERROR)
    return f'Something went wrong ({type(error).__name__}); the terminal says more.'
