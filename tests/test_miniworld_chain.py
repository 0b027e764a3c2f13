"""The whole chain in little: pre-training, distillation and evaluation on a generated world teach what they should.

The margins are about half of what is seen, so that another machine's rounding does not matter.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from densevlm_mm.apis import load_weights
from densevlm_mm.datasets.miniworld import generate_miniworld

CONFIGS = Path(__file__).parent.parent / 'configs' / 'miniworld'


@pytest.fixture(scope='module')
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('miniworld')
    generate_miniworld(root / 'data', num_train=1200, num_val=120)
    return root


def load_config(name: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv('MINIWORLD_DATA', str(world / 'data'))
    monkeypatch.setenv('MINIWORLD_WEIGHTS', str(world))
    # mmengine pretty-prints the config several times per run, which takes longer than the evaluation
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **style: (text, False))
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.work_dir = str(world / 'runs' / name)
    cfg.experiment_name = f'chain_{name}_{id(cfg)}'
    return cfg


def train(cfg: Config, iterations: int, final: Path) -> None:
    """Train for so many iterations instead of the config's, schedule included."""
    warmup, cosine = cfg.param_scheduler
    cosine.update(T_max=iterations - warmup.end, end=iterations)
    cfg.train_cfg.update(max_iters=iterations, val_interval=10 * iterations, val_begin=10 * iterations)
    cfg.default_hooks.checkpoint.interval = iterations
    Runner.from_cfg(cfg).train()
    final.parent.mkdir(parents=True, exist_ok=True)
    Path(cfg.work_dir, f'iter_{iterations}.pth').rename(final)


def evaluate(cfg: Config, checkpoint: Path) -> dict[str, float]:
    runner = Runner.from_cfg(cfg)
    load_weights(runner, str(checkpoint))
    return runner.test()


@pytest.mark.slow
def test_densevlm_takes_the_foreground_bias_from_a_tiny_clip(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def config(name: str) -> Config:
        return load_config(name, world, monkeypatch)

    steps = ('pretrain_student', 'pretrain_teacher', 'densevlm')
    student, teacher, after = (world / step / 'final.pth' for step in steps)
    train(config('pretrain_student_miniworld'), 200, student)
    train(config('pretrain_teacher_miniworld'), 120, teacher)
    train(config('densevlm_tiny_miniworld'), 100, after)
    before = evaluate(config('eval_student_miniworld'), student)
    learnt = evaluate(config('eval_student_miniworld'), after)
    taught = evaluate(config('eval_teacher_miniworld'), teacher)
    assert taught['masks.thing.macc1'] > before['masks.thing.macc1'] + 20
    assert taught['masks.stuff.macc1'] > before['masks.stuff.macc1'] + 20
    assert before['bias'] > 20
    assert learnt['bias'] < before['bias'] / 2
    assert learnt['masks.stuff.macc1'] > before['masks.stuff.macc1'] + 15
    assert learnt['masks.thing.macc1'] > before['masks.thing.macc1'] + 5
