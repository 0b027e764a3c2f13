"""Generating a whole mini world on disk, at once or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .captions import draw_captions
from .coco_files import Annotations, annotation_files, panoptic_folder, write_annotation_files, write_scene
from .open_vocabulary import write_open_vocabulary
from .scene import Scene, check_scene_options, render_scene

# Raise it whenever the same options give other pixels or annotations than before.
GENERATOR_VERSION = 1
MARKER = 'miniworld.json'
# Each split has its own range of image ids, so that neither depends on how many images the other holds.
FIRST_ID = {'train2017': 1, 'val2017': 10_000_001}
MAX_IMAGES = 10_000_000
CHUNK = 64

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class World:
    """Everything that decides what image number ``index`` of a split looks like.

    Attributes:
        seed: Seed of the whole world, at least 0.
        size: (width, height) of most images in pixels.
        oblong: Share of images, in [0, 1], of which one side is cut to 3/4.
        texture_noise: How confusable the stuff classes are, in [0, 1].
        stuff_mention: Probability, in [0, 1], that a caption names a stuff region.
        captions_per_image: Between 1 and 10.

    Raises:
        ValueError: An option lies outside its range.
    """

    seed: int = 0
    size: tuple[int, int] = (64, 64)
    oblong: float = 0.25
    texture_noise: float = 0.5
    stuff_mention: float = 0.2
    captions_per_image: int = 1

    def __post_init__(self) -> None:
        check_scene_options(size=self.size, oblong=self.oblong, texture_noise=self.texture_noise)
        if self.seed < 0:
            raise ValueError(f'seed must not be negative, got {self.seed}')
        if not 0 <= self.stuff_mention <= 1:
            raise ValueError(f'stuff_mention must lie in [0, 1], got {self.stuff_mention}')
        if not 1 <= self.captions_per_image <= 10:
            raise ValueError(f'captions_per_image must lie between 1 and 10, got {self.captions_per_image}')

    def render(self, split: str, index: int) -> tuple[Scene, list[str]]:
        """Scene and captions of one image; they depend on no other image."""
        rng = np.random.default_rng([self.seed, list(FIRST_ID).index(split), index])
        scene = render_scene(rng, size=self.size, oblong=self.oblong, texture_noise=self.texture_noise)
        captions = draw_captions(
            rng, scene.things, scene.stuff, count=self.captions_per_image, stuff_mention=self.stuff_mention
        )
        return scene, captions


def generate_miniworld(
    root: str | Path,
    *,
    num_train: int = 4000,
    num_val: int = 400,
    size: int | tuple[int, int] = 64,
    seed: int = 0,
    oblong: float = 0.25,
    texture_noise: float = 0.5,
    stuff_mention: float = 0.2,
    captions_per_image: int = 1,
    workers: int = 1,
    force: bool = False,
    progress: Progress | None = None,
) -> bool:
    """Write a mini world in COCO's layout, unless ``root`` holds the very same one already.

    The data set appears under ``root`` only when it is complete: it is written beside ``root`` and renamed.
    The files depend on the options of the world and the versions of NumPy and Pillow, not on ``workers``.

    Args:
        root: Folder of the data set, to be created.
        num_train: Number of images in train2017.
        num_val: Number of images in val2017, which are the same whatever ``num_train`` is.
        size: Side, or (width, height), of most images in pixels.
        seed: Seed of the whole world.
        oblong: Share of images, in [0, 1], of which one side is cut to 3/4.
        texture_noise: How confusable the stuff classes are, in [0, 1].
        stuff_mention: Probability, in [0, 1], that a caption names a stuff region.
        captions_per_image: Between 1 and 10.
        workers: Number of processes; 1 works in the calling one.
        force: Replace a mini world with other options, or one that lacks files.
        progress: Called with the number of finished images and of all images.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: An option lies outside its range.
        FileExistsError: ``root`` holds another mini world and ``force`` is not set, or anything else.
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    world = World(seed, size, oblong, texture_noise, stuff_mention, captions_per_image)
    counts = {'train2017': num_train, 'val2017': num_val}
    if not all(0 <= count <= MAX_IMAGES for count in counts.values()):
        raise ValueError(f'num_train and num_val must lie in [0, {MAX_IMAGES}], got {[*counts.values()]}')
    if workers < 1:
        raise ValueError(f'workers must be at least 1, got {workers}')
    # A root that is a link is filled where it points to: a rename must not cross file systems.
    root = Path(root).resolve()
    if _is_up_to_date(root, world, counts, force=force):
        return write_open_vocabulary(root)  # worlds of earlier versions lack it
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}-', dir=root.parent) as scratch:
        fresh = Path(scratch) / 'fresh'
        _write_world(fresh, world, counts, workers=workers, progress=progress)
        if root.exists():
            os.replace(root, Path(scratch) / 'old')
        os.replace(fresh, root)
    return True


def _parameters(world: World, counts: dict[str, int]) -> dict[str, Any]:
    # Lists, as JSON gives them back: the parameters are compared with those of the marker.
    return {'generator_version': GENERATOR_VERSION, **asdict(world), 'size': [*world.size], 'images': counts}


def _is_up_to_date(root: Path, world: World, counts: dict[str, int], *, force: bool) -> bool:
    """Whether ``root`` holds this world.

    Raises:
        FileExistsError: It holds something else that must not be replaced.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / MARKER
    if not marker.is_file():
        raise FileExistsError(f'{root} is no mini world (it has no {MARKER}): choose another folder')
    wanted, found = _parameters(world, counts), json.loads(marker.read_text(encoding='utf-8'))
    if wanted == found and _is_complete(root, counts):
        return True
    if force:
        return False
    if wanted == found:
        raise FileExistsError(f'{root} lacks files: write it again with force')
    differences = ', '.join(
        f'{key} {found.get(key)} instead of {wanted[key]}' for key in wanted if found.get(key) != wanted[key]
    )
    raise FileExistsError(
        f'{root} holds another mini world ({differences}): choose another folder, or replace it with force'
    )


def _is_complete(root: Path, counts: dict[str, int]) -> bool:
    return all(
        all(path.is_file() for path in annotation_files(root, split).values())
        and sum(1 for _ in (root / split).glob('*.jpg')) == count
        and sum(1 for _ in panoptic_folder(root, split).glob('*.png')) == count
        for split, count in counts.items()
    )


def _write_world(root: Path, world: World, counts: dict[str, int], *, workers: int, progress: Progress | None) -> None:
    done, total = 0, sum(counts.values())
    for split, count in counts.items():
        (root / split).mkdir(parents=True)
        panoptic_folder(root, split).mkdir(parents=True)
        annotations: list[Annotations] = []
        # Closing waits for the processes: an interruption must not remove the folder under a writer.
        with closing(_write_chunks(root, world, split, count, workers=workers)) as chunks:
            for chunk in chunks:
                annotations += chunk
                if progress is not None:
                    progress(done + len(annotations), total)
        done += count
        write_annotation_files(root, split, annotations, _info(world, split, count))
    write_open_vocabulary(root)
    (root / MARKER).write_text(json.dumps(_parameters(world, counts), indent=2) + '\n', encoding='utf-8')


def _info(world: World, split: str, count: int) -> dict[str, Any]:
    parameters = _parameters(world, {split: count})
    return {
        'description': 'mini world: generated scenes of things on stuff',
        'version': str(parameters.pop('generator_version')),
        'parameters': parameters,
    }


def _write_chunks(
    root: Path, world: World, split: str, count: int, *, workers: int
) -> Generator[list[Annotations], None, None]:
    write = partial(_write_chunk, root, world, split)
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    if workers == 1 or len(chunks) < 2:
        yield from map(write, chunks)
        return
    # Forking a process that holds threads, as every program with torch does, may deadlock.
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context) as pool:
        yield from pool.map(write, chunks)


def _write_chunk(root: Path, world: World, split: str, indices: range) -> list[Annotations]:
    first = FIRST_ID[split]
    return [write_scene(root, split, first + index, *world.render(split, index)) for index in indices]
