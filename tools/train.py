#!/usr/bin/env python
"""Train a model from a config.

python tools/train.py configs/densevlm/densevlm_vitb16_coco.py
"""

from __future__ import annotations

import argparse

from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from densevlm_mm.apis import (
    add_common_arguments,
    check_config,
    close_process_group,
    keep_freed_memory,
    load_config,
    start_from,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without a value, from the last one of the work dir if there is any',
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (needs an accelerator)')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the actual batch size')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    keep_freed_memory()
    cfg = load_config(args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise SystemExit(f'{args.config} sets no auto_scale_lr.base_batch_size, which --auto-scale-lr needs')
        cfg.auto_scale_lr.enable = True
    start_from(cfg)  # when resuming too: what is made of the first weights must be made of the same ones again
    checkpoint = find_latest_checkpoint(cfg.work_dir) if args.resume == 'auto' else args.resume
    if checkpoint is not None:
        cfg.resume, cfg.load_from = True, checkpoint
    check_config(cfg)
    (RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)).train()


if __name__ == '__main__':
    main()
    close_process_group()
