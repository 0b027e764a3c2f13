"""Models whose weights FSDP holds; `tests/test_tools/test_train.py` trains one in two processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

from densevlm_mm.hooks import RegionPictureHook, WeightEnsembleHook
from densevlm_mm.models import RegionClassifier, ShardedDataParallel, sharded
from densevlm_mm.models.sharded import trainable_parameters

pytestmark = pytest.mark.filterwarnings('ignore:FSDP.state_dict_type', 'ignore:.*NO_SHARD')


@pytest.fixture
def model(tmp_path, tiny_arch, monkeypatch) -> nn.Module:
    """A model in FSDP, of which this is the only process; the blocks of its image tower train."""
    dist.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    try:
        inner = RegionClassifier(vlm=dict(arch=tiny_arch()), eval_vocabulary=dict(things=['cat'], stuff=['sky']))
        inner.vlm.visual.set_trainable(2)
        inner.vlm.logit_scale.requires_grad_(False)
        inner.__dict__['teacher'] = nn.Linear(2, 3)
        monkeypatch.setattr(sharded, 'get_device', lambda: 'meta')
        yield ShardedDataParallel(inner, device_id=torch.device('cpu'))
    finally:
        dist.destroy_process_group()


def test_units_are_all_blocks_but_the_last(model):
    wrapped = [module for module in model.modules() if isinstance(module, FullyShardedDataParallel)]
    assert [type(unit.module).__name__ for unit in wrapped] == ['RegionClassifier', 'EvaBlock']
    assert wrapped[1] is model.module.vlm.visual.blocks[0]


def test_a_teacher_is_whole_and_on_the_device(model):
    assert model.module.teacher.weight.device.type == 'meta'
    assert not any('teacher' in name for name, _ in model.named_parameters())


def test_parameters_have_the_names_of_checkpoints(model):
    names = {name for name, _ in trainable_parameters(model)}
    assert len(names) > 20
    assert names < set(model.state_dict())
    trains = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == {name.replace('_fsdp_wrapped_module.', '') for name in trains}


def test_what_is_written_to_parameters_stays(model):
    with torch.no_grad():
        for _, parameter in trainable_parameters(model, writes=True):
            parameter.fill_(3)
    assert all((parameter == 3).all() for _, parameter in trainable_parameters(model))
    assert not (model.state_dict()['vlm.visual.trunk.cls_token'] == 3).any()


def test_matrices_decay_also_where_they_are_spread(model):
    config = {'constructor': 'densevlm_mm.DecayGroups', 'optimizer': {'type': 'SGD', 'lr': 0.1, 'weight_decay': 0.5}}
    groups = build_optim_wrapper(model, config).optimizer.param_groups
    decays = {id(parameter): group['weight_decay'] for group in groups for parameter in group['params']}
    for name, parameter in trainable_parameters(model):
        assert decays[id(parameter)] == (0.5 if parameter.ndim > 1 else 0.0), name


def test_hooks_that_need_whole_weights_say_so(model):
    runner = SimpleNamespace(model=model, iter=0)
    with pytest.raises(TypeError, match='RegionPictureHook draws in one process'):
        RegionPictureHook().before_train(runner)
    FullyShardedDataParallel.set_state_dict_type(model, StateDictType.LOCAL_STATE_DICT)
    with pytest.raises(ValueError, match="set strategy.state_dict_cfg='full'"):
        WeightEnsembleHook(0.5).before_run(runner)


def test_gradients_are_not_clipped_by_the_norm_of_a_part(model):
    config = {'optimizer': {'type': 'SGD', 'lr': 0.1}, 'clip_grad': {'max_norm': 1.0}}
    with pytest.raises(ValueError, match='remove optim_wrapper.clip_grad'):
        model.train_step({}, build_optim_wrapper(model, config))
