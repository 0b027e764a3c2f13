#!/usr/bin/env python
"""Measure the memory that segmenting one image takes, with random weights, in this process alone.

python tools/analysis_tools/segmentation_memory.py --arch EVA02-CLIP-B-16 --size 1024 2048 --classes 847
python tools/analysis_tools/segmentation_memory.py --config CONFIG --cfg-options model.views_at_once=1
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

import torch
from mmengine.config import Config, DictAction
from mmseg.models import BaseSegmentor
from mmseg.structures import SegDataSample

from densevlm_mm.benchmark.machine import memory_in_use, peak_memory
from densevlm_mm.benchmark.synthetic import arch_named
from densevlm_mm.registry import MODELS
from densevlm_mm.seg import TrainingFreeSegmentor

MIB = 2**20


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--arch', default='EVA02-CLIP-B-16', help="what load_vlm takes, or 'tiny-student'")
    parser.add_argument('--size', type=int, nargs=2, default=(1024, 2048), metavar=('H', 'W'), help='image in px')
    parser.add_argument('--classes', type=int, default=847)
    parser.add_argument('--window', type=int, default=336, help='px')
    parser.add_argument('--stride', type=int, default=112, help='px')
    parser.add_argument('--config', help='a segmentor such as CAT-Seg, in place of --arch, --window and --stride')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='override entries, key=value')
    parser.add_argument('--device', default='cpu', help="'cpu' or 'cuda'")
    return parser.parse_args(argv)


def class_names(count: int) -> list[str]:
    """So many different names of two words that every text tower here knows."""
    return [' '.join('stuff' if bit == '1' else 'thing' for bit in f'{number:b}') for number in range(count)]


def build(args: argparse.Namespace) -> BaseSegmentor:
    names = class_names(args.classes)
    if args.config is None:
        vlm, view = {'arch': arch_named(args.arch)}, {'window': args.window, 'stride': args.stride}
        return TrainingFreeSegmentor(vlm, names, templates='none', **view)
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options)
    vlm = {**config.model.vlm, 'checkpoint': None}
    return MODELS.build({**config.model, 'vlm': vlm, 'vocabulary': names})


def describe(args: argparse.Namespace) -> str:
    if args.config is None:
        return f'{args.arch}, window {args.window}, stride {args.stride}'
    return ', '.join([args.config, *(f'{key}={value}' for key, value in args.cfg_options.items())])


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    model = build(args).to(args.device).eval()
    image = torch.randint(0, 256, (3, *args.size), dtype=torch.uint8)
    sample = SegDataSample(metainfo={'ori_shape': tuple(args.size)})
    before, started = memory_in_use(args.device), time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:  # embeddings of random weights are not worth keeping
        os.environ['DENSEVLM_CACHE'] = cache
        model.test_step({'inputs': [image], 'data_samples': [sample]})
    seconds, peak = time.perf_counter() - started, peak_memory(args.device)
    if before is None or peak is None:
        raise SystemExit('this system does not tell how much memory is in use: measure on Linux or a GPU')
    height, width = args.size
    print(f'{describe(args)}; {height}x{width} px, {args.classes} classes')
    print(f'fp32 scores of all classes at all pixels: {4 * args.classes * height * width / MIB:,.0f} MiB')
    print(f'in use with the model loaded:             {before / MIB:,.0f} MiB')
    print(f'peak:                                     {peak / MIB:,.0f} MiB, in {seconds:.1f} s')


if __name__ == '__main__':
    main()
