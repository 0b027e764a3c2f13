#!/usr/bin/env python
"""Evaluate several blends alpha * student + (1 - alpha) * original of one pair of checkpoints.

python tools/sweep_alpha.py configs/densevlm/eval_vitb16_coco-panoptic.py \
    work_dirs/densevlm_vitb16_coco/iter_11088.pth checkpoints/EVA02_CLIP_B_psz16_s8B.pt --alphas 0 0.5 0.7 0.9 1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from densevlm_mm.apis import add_common_arguments, check_config, close_process_group, load_config
from densevlm_mm.evaluation.report import format_table, write_json
from densevlm_mm.hooks.weight_ensemble_hook import read_raw_weights
from densevlm_mm.models.vlm_model import VLMModel

State = dict[str, Tensor]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument('student', help='trained weights; of a run with WeightEnsembleHook, the raw ones are taken')
    parser.add_argument('original', help='weights that training started from')
    parser.add_argument('--alphas', type=float, nargs='+', default=[0, 0.5, 0.7, 0.9, 1], help='shares of the student')
    parser.add_argument('--out', help='where to write the figures (default: WORK_DIR/alpha_sweep.json)')
    args = parser.parse_args()
    if not all(0 <= alpha <= 1 for alpha in args.alphas):
        parser.error(f'alphas must lie in 0..1, got {args.alphas}')
    return args


def read_pair(model: VLMModel, student: str, original: str) -> tuple[State, State, int]:
    """States of both checkpoints under the model's names, and how many tensors of the first are raw ones."""
    states = {}
    for path in (original, student):  # the last one decides on dense mode and normalisation
        model.load_weights(path)
        states[path] = {name: value.clone() for name, value in model.vlm.state_dict().items()}
    raw = read_raw_weights(student)
    states[student].update({name: value.to(states[student][name]) for name, value in raw.items()})
    return states[student], states[original], len(raw)


def blend(student: State, original: State, alpha: float) -> State:
    """Interpolated weights; what is equal in both stays as it is, bit for bit."""
    return {
        name: torch.lerp(value, student[name], alpha) if value.is_floating_point() else student[name]
        for name, value in original.items()
    }


def sweep(runner: Runner, student: State, original: State, alphas: Sequence[float]) -> list[dict[str, float]]:
    """Figures of every blend, in the order of the alphas."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    figures = []
    for alpha in alphas:
        model.vlm.load_state_dict(blend(student, original, alpha))
        # Leaves the training mode, and with it drops class embeddings of the last blend. A text tower that is the same
        # in both finds its own in the cache on disk.
        model.eval()
        figures.append(runner.test())
    return figures


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    cfg.resume, cfg.load_from = False, None  # the runner would load those weights over the first blend
    check_config(cfg, train=False, files=[args.student, args.original])
    runner = Runner.from_cfg(cfg)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    student, original, num_raw = read_pair(model, args.student, args.original)
    if num_raw:
        runner.logger.info(f'{args.student}: its state_dict is a blend already; {num_raw} raw weights beside it taken')
    figures = sweep(runner, student, original, args.alphas)
    if is_main_process():
        out = Path(args.out or Path(cfg.work_dir) / 'alpha_sweep.json')
        rows = [[name, *(figure[name] for figure in figures)] for name in figures[0]]
        print(format_table(['alpha', *(f'{alpha:g}' for alpha in args.alphas)], rows))
        entries = [{'alpha': alpha, 'metrics': figure} for alpha, figure in zip(args.alphas, figures, strict=True)]
        write_json(out, {'student': args.student, 'original': args.original, 'raw': bool(num_raw), 'sweep': entries})
        print(f'written: {out}')


if __name__ == '__main__':
    main()
    close_process_group()
