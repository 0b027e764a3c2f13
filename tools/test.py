#!/usr/bin/env python
"""Evaluate a checkpoint of any supported format with a config.

python tools/test.py configs/densevlm/eval_vitb16_coco-panoptic.py checkpoints/EVA02_CLIP_B_psz16_s8B.pt
"""

from __future__ import annotations

import argparse

from mmengine.evaluator import DumpResults
from mmengine.runner import Runner

from densevlm_mm.apis import (
    add_common_arguments,
    check_config,
    close_process_group,
    keep_freed_memory,
    load_config,
    load_weights,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='file with the weights to evaluate')
    parser.add_argument('--out', help='also dump the raw predictions into this .pkl file')
    args = parser.parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error('--out must be a .pkl file')
    return args


def main() -> None:
    args = parse_args()
    keep_freed_memory()
    cfg = load_config(args)
    # as the configs that a resumed run leaves in its work dir have them: the runner would load those weights last
    cfg.resume, cfg.load_from = False, None
    check_config(cfg, train=False, files=[args.checkpoint])
    runner = Runner.from_cfg(cfg)
    load_weights(runner, args.checkpoint)
    if args.out:
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    runner.test()


if __name__ == '__main__':
    main()
    close_process_group()
