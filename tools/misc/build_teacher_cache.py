#!/usr/bin/env python
"""Store the teacher's features of all training images, so that training never runs the teacher.

An interrupted run goes on where it stopped. In several processes, by torchrun:

python tools/misc/build_teacher_cache.py configs/densevlm/densevlm_vitb16_coco_teacher-cache.py
torchrun --nproc-per-node 4 tools/misc/build_teacher_cache.py CONFIG --launcher pytorch
"""

from __future__ import annotations

import argparse
import sys

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_reduce, init_dist, is_main_process
from mmengine.optim import build_optim_wrapper

from densevlm_mm.apis import add_common_arguments, check_config, close_process_group, load_config
from densevlm_mm.models import DenseVLM
from densevlm_mm.models.distillers.fill_teacher_cache import cache_size, fill_teacher_cache, images_in_order
from densevlm_mm.registry import MODELS


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    return parser.parse_args(argv)


def build(cfg: Config) -> DenseVLM:
    """The distiller of a config that has a teacher cache."""
    if not cfg.model.get('teacher_cache'):
        raise ValueError(f"{cfg.filename}: has no teacher cache; set model.teacher_cache=dict(folder='...')")
    check_config(cfg)
    return MODELS.build(cfg.model).to(get_device())


def show_progress(done: int, total: int) -> None:
    """Keep one line of the terminal up to date."""
    if is_main_process():
        print(f'\r{done}/{total} batches', end='\n' if done == total else '', file=sys.stderr, flush=True)


def fill(cfg: Config, model: DenseVLM) -> None:
    """Fill the cache under the precision that the config trains in, telling before and after what it takes."""
    loader = images_in_order(cfg.train_dataloader)
    with build_optim_wrapper(model, cfg.optim_wrapper).optim_context(model):
        size = cache_size(model, loader)
        if is_main_process():
            total, free = size.images * size.image_bytes / 1e9, size.free_bytes / 1e9
            print(f'{size.folder}: {size.images:,} images of {size.image_bytes:,} bytes, {total:.1f} GB in all')
            print(f'{size.stored:,} are stored, of this or other data sets; {free:.1f} GB are free')
        if size.missing_bytes > size.free_bytes:
            raise ValueError(f'{size.folder}: the disk is too small; make room or choose another folder')
        counts = torch.tensor(fill_teacher_cache(model, loader, show_progress))
    all_reduce(counts)
    if is_main_process():
        images, made = counts.tolist()
        print(f'done: {images:,} images, of which {made:,} were new')


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when all features are there, 2 when they cannot be."""
    args = parse_args(argv)
    cfg = load_config(args)
    if cfg.launcher != 'none':
        init_dist(cfg.launcher, **cfg.env_cfg.dist_cfg)
    try:
        fill(cfg, build(cfg))
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    if failed := main():
        sys.exit(failed)
    close_process_group()
