#!/usr/bin/env python
"""Make the pictures of docs/pictures.md from what tools/demo.py (and tools/demo_detection.py) left.

python tools/misc/make_doc_pictures.py
python tools/misc/make_doc_pictures.py --only regions similarity --out-dir work_dirs/pictures
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'miniworld'
# heading of a picture -> step of the demo
MODELS_SHOWN = {'before': 'pretrain_student', 'after DenseVLM': 'densevlm'}
QUERIES = ('person', 'grass', 'sky', 'stone')
MAX_BYTES = 150_000
GAP = 16  # px


@dataclass(frozen=True)
class World:
    """A mini world, what was trained on it, and which of its images to show.

    Attributes:
        data: Folder of the images.
        work_dir: Folder of the demo's steps.
        first: Position of the first validation image that is shown.
        count: Images in pictures that show several.
    """

    data: Path
    work_dir: Path
    first: int
    count: int

    @property
    def images(self) -> list[Path]:
        """The validation images to show."""
        return sorted((self.data / 'val2017').iterdir())[self.first : self.first + self.count]

    def weights(self, step: str) -> Path:
        """Checkpoint of a step.

        Raises:
            FileNotFoundError: The step was not run.
        """
        path = self.work_dir / step / 'final.pth'
        if not path.is_file():
            raise FileNotFoundError(f'{path}: no such checkpoint')
        return path


def draw_regions(world: World) -> np.ndarray:
    """A grid of regions, before and after."""
    return _before_and_after(world, 'regions', _vocabulary())


def draw_segmentation(world: World) -> np.ndarray:
    """Classes of pixels, before and after."""
    return _before_and_after(world, 'segment', _vocabulary())


def draw_similarity(world: World) -> np.ndarray:
    """Similarity with a few names, after."""
    return _infer(world, MODELS_SHOWN['after DenseVLM'], 'similarity', list(QUERIES))


def draw_features(world: World) -> np.ndarray:
    """Principal components of dense features, before and after."""
    from densevlm_mm.visualization import draw_features

    images = [np.array(Image.open(path).convert('RGB')) for path in world.images]
    model = _build('eval_student_miniworld')
    inputs = [
        model.data_preprocessor({'inputs': torch.from_numpy(image).permute(2, 0, 1)[None]})['inputs']
        for image in images
    ]
    rows = {}
    for title, step in MODELS_SHOWN.items():
        model.load_weights(world.weights(step))
        with torch.no_grad():
            rows[title] = [model.vlm.encode_dense(one)[0] for one in inputs]
    return draw_features(images, rows)


def draw_detections(world: World) -> np.ndarray:
    """Boxes that F-ViT finds on the tower after DenseVLM."""
    from densevlm_mm.apis import Inferencer

    weights = world.weights('fvit_densevlm')
    inferencer = Inferencer(str(CONFIGS / 'fvit_tiny_ov-miniworld_densevlm.py'), 'detect', weights=str(weights))
    paths = [str(path) for path in world.images[:2]]
    return _beside(inferencer(paths, return_vis=True)['visualization'])


def draw_confusion(world: World) -> np.ndarray:
    """Which stuff is taken for which things, before."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    from densevlm_mm.apis import load_weights

    with tempfile.TemporaryDirectory() as folder:
        cfg = Config.fromfile(CONFIGS / 'eval_student_miniworld.py')
        cfg.work_dir, cfg.log_level = folder, 'ERROR'
        cfg.test_evaluator.update(confusion=True, out_json=f'{folder}/figures.json')
        runner = Runner.from_cfg(cfg)
        load_weights(runner, str(world.weights(MODELS_SHOWN['before'])))
        runner.test()
        return np.array(Image.open(Path(folder, 'region_confusion.png')).convert('RGB'))


PICTURES = {
    'regions': draw_regions,
    'segmentation': draw_segmentation,
    'similarity': draw_similarity,
    'features': draw_features,
    'detections': draw_detections,
    'confusion': draw_confusion,
}
# what may be missing, and what makes it; everything else needs tools/demo.py
OPTIONAL = {'detections': 'python tools/demo_detection.py'}


def _infer(world: World, step: str, task: str, vocabulary: Any) -> np.ndarray:
    """The picture of the first image."""
    from densevlm_mm.apis import Inferencer

    cfg = _config('eval_student_miniworld')
    look = {'templates': cfg.miniworld_templates, 'size': cfg.student_arch.vision_cfg.image_size}
    inferencer = Inferencer(str(world.weights(step)), task, vocabulary, **look)
    return inferencer(str(world.images[0]), return_vis=True)['visualization'][0]


def _before_and_after(world: World, task: str, vocabulary: Any) -> np.ndarray:
    from densevlm_mm.visualization.canvas import stack_rows
    from densevlm_mm.visualization.legend import heading

    pictures = []
    for title, step in MODELS_SHOWN.items():
        picture = _infer(world, step, task, vocabulary)
        pictures.append(stack_rows([heading(title, picture.shape[1], 20), picture]))
    return _beside(pictures)


def _beside(pictures: Sequence[np.ndarray]) -> np.ndarray:
    from densevlm_mm.visualization.canvas import stack_columns

    return stack_columns(pictures, GAP)


def _config(name: str) -> Any:
    from mmengine.config import Config

    return Config.fromfile(CONFIGS / f'{name}.py')


def _vocabulary() -> dict[str, list[str]]:
    return _config('eval_student_miniworld').miniworld_vocabulary.to_dict()


def _build(name: str) -> Any:
    from densevlm_mm.registry import MODELS

    return MODELS.build(_config(name).model).eval()


def save(picture: np.ndarray, path: Path) -> None:
    """Write a PNG, with a palette of 256 colours if it is large otherwise."""
    from densevlm_mm.vlm.checkpoints import save_atomically

    image = Image.fromarray(picture)
    save_atomically(path, lambda file: image.save(file, format='png', optimize=True))
    if path.stat().st_size > MAX_BYTES:
        smaller = image.quantize(256, dither=Image.Dither.NONE)
        save_atomically(path, lambda file: smaller.save(file, format='png', optimize=True))


def make(world: World, names: Sequence[str], out_dir: Path) -> Iterator[str]:
    """Make the pictures, and say of each what became of it.

    Raises:
        FileNotFoundError: A step that is not optional was not run.
    """
    # the configs read these
    os.environ.update(MINIWORLD_DATA=str(world.data), MINIWORLD_WEIGHTS=str(world.work_dir))
    for name in names:
        path = out_dir / f'{name}.png'
        try:
            save(PICTURES[name](world), path)
        except FileNotFoundError as error:
            if name not in OPTIONAL:
                raise
            yield f'{name}: left out ({error}); `{OPTIONAL[name]}` makes what it needs'
        else:
            yield f'{name}: {path}, {path.stat().st_size / 1000:.0f} kB'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/miniworld/seed0'), help='what was trained')
    parser.add_argument('--data', type=Path, default=Path('data/miniworld/seed0'), help='the world it was trained on')
    parser.add_argument('--out-dir', type=Path, default=ROOT / 'docs' / 'images', help='folder for the pictures')
    parser.add_argument('--only', nargs='+', choices=list(PICTURES), default=list(PICTURES), help='which pictures')
    parser.add_argument('--first', type=int, default=0, help='position of the first validation image to show')
    parser.add_argument('--count', type=int, default=4, help='images in pictures that show several')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 2 when something that it needs is missing."""
    args = parse_args(argv)
    world = World(args.data.resolve(), args.work_dir.resolve(), args.first, args.count)
    try:
        for line in make(world, args.only, args.out_dir):
            print(line, flush=True)
    except FileNotFoundError as error:
        print(f'error: {error}; `bash tools/demo.sh` makes the mini world and what is trained on it', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
