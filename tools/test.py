#!/usr/bin/env python
"""Evaluate a checkpoint of any supported format with a config.

    python tools/test.py configs/densevlm/eval_vitb16_coco-panoptic.py checkpoints/EVA02_CLIP_B_psz16_s8B.pt
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def parse_args() -> argparse.Namespace:
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='file with the weights to evaluate')
    parser.add_argument('--work-dir', help='where logs and results go (default: work_dirs/<config name>)')
    parser.add_argument('--out', help='also dump the raw predictions into this .pkl file')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='override entries, key=value')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error('--out must be a .pkl file')
    return args


def main() -> None:
    args = parse_args()
    from mmengine.config import Config
    from mmengine.evaluator import DumpResults
    from mmengine.runner import Runner

    from densevlm_mm.apis import check_config, load_weights

    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    check_config(cfg, train=False, files=[args.checkpoint])
    runner = Runner.from_cfg(cfg)
    load_weights(runner, args.checkpoint)
    if args.out:
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    runner.test()


if __name__ == '__main__':
    main()
