"""Labelling boxes with nouns: which of them a CLIP sees in the crop of each box (RegionCLIP's pseudo-labels)."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from densevlm_mm.vlm import VLM, class_embeddings
from densevlm_mm.vlm.checkpoints import save_atomically

from .box_dataset import sorted_categories
from .image_file import BadImageError
from .transforms import LoadImage, crop_image, enlarge_boxes

Progress = Callable[[int, int], None]

# Words of captions that name nothing one could point at.
STOP_WORDS = frozenset({
    'a', 'an', 'and', 'are', 'as', 'at', 'by', 'for', 'from', 'has', 'have', 'her', 'his', 'image', 'in', 'into', 'is',
    'it', 'its', 'many', 'of', 'off', 'on', 'onto', 'or', 'out', 'over', 'photo', 'picture', 'several', 'some', 'that',
    'the', 'their', 'there', 'these', 'this', 'three', 'to', 'two', 'up', 'very', 'while', 'with',
})  # fmt: skip


def read_nouns(path: str | Path, *, min_count: int = 1) -> tuple[str, ...]:
    """Nouns from a file.

    Args:
        path: ``.txt`` with one noun per line; or ``.json``: a list of names, a COCO-style file whose categories they
            are, or one with captions, whose words are taken, the most frequent first. Words are no more than that: a
            tagger would tell which of them are nouns.
        min_count: Captions' words that occur more rarely are left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no nouns, or one of them twice.
    """
    text = Path(path).read_text(encoding='utf-8')
    if Path(path).suffix == '.txt':
        nouns = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        content = json.loads(text)
        nouns = content if isinstance(content, list) else _nouns_of_coco_file(content, str(path), min_count)
    twice = [noun for noun, count in Counter(nouns).items() if count > 1]
    if not nouns or twice:
        raise ValueError(f'{path}: ' + (f'lists {twice[:5]} more than once' if twice else 'holds no nouns'))
    return tuple(nouns)


def _nouns_of_coco_file(content: dict, path: str, min_count: int) -> Sequence[str]:
    if content.get('categories'):
        return sorted_categories(content['categories'], path)[1]
    captions = [a['caption'] for a in content.get('annotations', []) if 'caption' in a]
    words = Counter(word for caption in captions for word in re.findall(r'[a-z]+(?:-[a-z]+)*', caption.lower()))
    frequent = sorted((word for word, n in words.items() if n >= min_count), key=lambda word: (-words[word], word))
    return [word for word in frequent if word not in STOP_WORDS]


class CropLabeler:
    """Tells which noun a CLIP sees in a box.

    Args:
        vlm: The CLIP; its normalisation, native input size and logit scale are used.
        nouns: K names.
        templates: Prompt templates.
        enlarge: Factor by which boxes grow before they are cut out, see `enlarge_boxes`.
        batch_size: Crops at once.
    """

    def __init__(
        self,
        vlm: VLM,
        nouns: Sequence[str],
        *,
        templates: str | Sequence[str] = 'vild',
        enlarge: float = 1.0,
        batch_size: int = 64,
    ) -> None:
        self.vlm = vlm
        self.nouns = tuple(nouns)
        self.enlarge = enlarge
        self.batch_size = batch_size
        self.texts = class_embeddings(vlm, self.nouns, templates, normalize=True)
        mean, std = (torch.tensor(v, device=vlm.device).view(-1, 1, 1) for v in (vlm.visual.mean, vlm.visual.std))
        self.mean, self.std = mean, std

    @torch.no_grad()
    def __call__(self, image: np.ndarray, boxes: Tensor) -> tuple[list[int], list[float]]:
        """Index and probability of the likeliest noun of each box.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
            boxes: ``(N, 4)`` xyxy in px.
        """
        height, width = image.shape[:2]
        size = max(self.vlm.visual.image_size)
        crops = [crop_image(image, box, size) for box in enlarge_boxes(boxes, self.enlarge, width, height).tolist()]
        labels, scores = [], []
        for chunk in torch.from_numpy(np.stack(crops)).split(self.batch_size):
            pixels = chunk.to(self.vlm.device).permute(0, 3, 1, 2).float() / 255
            features = self.vlm.encode_image((pixels - self.mean) / self.std).float()
            best = (self.vlm.logit_scale.exp().float() * features @ self.texts.T).softmax(-1).max(-1)
            labels += best.indices.tolist()
            scores += best.values.tolist()
        return labels, scores

    def fingerprint(self, proposals: dict) -> str:
        """Digest of everything that the labels depend on."""
        digest = hashlib.sha256(json.dumps([self.nouns, self.enlarge, proposals]).encode())
        for value in (self.texts, *self.vlm.state_dict().values()):
            digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()


def label_boxes(
    proposals: dict,
    image_folder: str | Path,
    labeler: CropLabeler,
    path: str | Path,
    *,
    progress: Progress | None = None,
) -> None:
    """Write a COCO-style file with a noun for each box.

    Boxes of images that cannot be decoded are left out, with a warning. The file appears when it is complete. Until
    then the labels of finished images gather in a journal beside it,
    ``{path}.partial``; the same call goes on from there.

    Args:
        proposals: COCO-style content with boxes, such as `propose_boxes` makes.
        image_folder: Where the ``file_name`` of its images begin.
        labeler: Says which noun a box shows.
        path: File that is written: ``categories`` are the nouns with ids from 1, ``annotations`` have ``bbox``,
            ``category_id`` and ``score``, the probability among the nouns.
        progress: Called with the number of finished images and of all images.

    Raises:
        ValueError: The journal is that of other boxes, nouns or weights.
    """
    path, folder = Path(path), Path(image_folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {image['id']: image['file_name'] for image in proposals['images']}
    boxes = defaultdict(list)
    for annotation in proposals['annotations']:
        boxes[annotation['image_id']].append(annotation['bbox'])
    with _Journal(path.with_name(f'{path.name}.partial'), labeler.fingerprint(proposals)) as journal:
        for done, image_id in enumerate(boxes, start=1):
            if image_id not in journal.found:
                journal.add(image_id, *_label_image(folder / names[image_id], boxes[image_id], labeler))
            if progress is not None:
                progress(done, len(boxes))
        content = _labelled(proposals, journal.found, labeler.nouns)
        save_atomically(path, lambda file: file.write(json.dumps(content, separators=(',', ':')).encode()))
        journal.path.unlink()


def _label_image(path: Path, boxes: list, labeler: CropLabeler) -> tuple[list[int], list[float]]:
    """Labels and scores of an image's boxes; none of a bad image, which training would pass over, too."""
    try:
        image = LoadImage()({'img_path': str(path)})['img']
    except BadImageError as error:
        warnings.warn(f'{error}; its boxes are left out', stacklevel=3)
        return [], []
    corners = torch.tensor(boxes).float()
    corners[:, 2:] += corners[:, :2]
    return labeler(image, corners)


class _Journal:
    """Labels and scores by image id, in memory and in a file that outlives an interruption.

    The first line is a fingerprint of the run, each further one an image. A last line that was cut is dropped.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.found: dict[int, tuple[list[int], list[float]]] = {}
        lines = path.read_text(encoding='utf-8').splitlines(keepends=True) if path.exists() else []
        lines = [line for line in lines if line.endswith('\n')]
        if lines and lines[0].strip() != fingerprint:
            raise ValueError(
                f'{path} holds the labels of other boxes, nouns or weights; finish that run, or remove the file'
            )
        for line in lines[1:]:
            image_id, labels, scores = json.loads(line)
            self.found[image_id] = labels, scores
        save_atomically(path, lambda file: file.write(''.join(lines or [f'{fingerprint}\n']).encode()))
        self.file = path.open('a', encoding='utf-8')

    def add(self, image_id: int, labels: list[int], scores: list[float]) -> None:
        self.found[image_id] = labels, scores
        self.file.write(json.dumps([image_id, labels, scores]) + '\n')
        self.file.flush()

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()


def _labelled(proposals: dict, found: dict[int, tuple[list[int], list[float]]], nouns: Sequence[str]) -> dict:
    """The proposals with what was found in them; the n-th box of an image has its n-th label."""
    following = {image_id: zip(*labels_and_scores, strict=True) for image_id, labels_and_scores in found.items()}
    annotations = []
    for annotation in proposals['annotations']:
        for label, score in islice(following[annotation['image_id']], 1):  # none of a bad image
            annotations.append({**annotation, 'category_id': label + 1, 'score': round(score, 4)})
    categories = [{'id': number, 'name': noun} for number, noun in enumerate(nouns, start=1)]
    return {'images': proposals['images'], 'annotations': annotations, 'categories': categories}
