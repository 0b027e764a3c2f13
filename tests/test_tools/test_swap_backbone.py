"""tools/misc/swap_backbone.py writes what ``configs/swap`` holds by itself, and refuses what it does not understand."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import mmengine
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from densevlm_mm.apis import SwapError, swap_backbone
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import load_vlm

pytest.importorskip('mmcv._ext', reason='the models need compiled operators')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

ROOT = Path(__file__).parents[2]
CHECKPOINT = 'checkpoints/densevlm_coco_6_save6_512_eva_vib16_12layers.pt'
# Twelve blocks and patches of 16 px, as the ViT-B/16 has.
TINY = {
    'embed_dim': 16,
    'vision_cfg': {
        'image_size': 64, 'patch_size': 16, 'layers': 12, 'width': 16, 'head_width': 16, 'mlp_ratio': 2.6667,
        'eva_model_name': 'tiny', 'pt_hw_seq_len': 4, 'rope': True, 'naiveswiglu': True, 'subln': True,
    },
    'text_cfg': {'width': 8, 'heads': 2, 'layers': 1, 'vocab_size': 64},
}  # fmt: skip
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
BY_HAND = {
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': 'faster-rcnn_densevlm-vitb16_coco',
    RETINANET: 'retinanet_densevlm-vitb16_coco',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py': 'dino_densevlm-vitb16_coco',
    'mmdet::mm_grounding_dino/grounding_dino_swin-t_pretrain_obj365.py': 'mm-grounding-dino_densevlm-vitb16_objects365',
    'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py': 'upernet_densevlm-vitb16_ade20k',
    'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py': 'fcn_densevlm-vitb16_ade20k',
}
# of these, the ones that are run, too: a neck, a model that cannot be built here for want of BERT, heads without a neck
RUN = [stock for stock in BY_HAND if 'faster-rcnn' in stock or 'grounding' in stock or 'upernet' in stock]


@pytest.fixture(autouse=True, scope='module')
def metafiles_read_once() -> Iterator[None]:
    """mmengine reads all metafiles of a package for each of its configs that is named ``package::``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.config.utils.load', cache(mmengine.fileio.load))
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder but for the tiny model config."""
    (tmp_path / 'tiny.json').write_text(json.dumps(TINY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(call) -> Callable[..., tuple[int, str, str]]:
    """Runs the tool with the tiny tower in this process; gives exit code, output and errors."""

    def run(*arguments: object, checkpoint: str | None = CHECKPOINT) -> tuple[int, str, str]:
        tower = ('--arch', 'tiny.json', *(['--checkpoint', checkpoint] if checkpoint else []))
        return call('misc/swap_backbone', *arguments, *tower)

    return run


def small(text: str = '', base: str = RETINANET) -> str:
    """A stock config with a ResNet-18, which is built in no time, and a line of one's own."""
    resnet = "dict(_delete_=True, type='ResNet', depth=18, num_stages=4, out_indices=(0, 1, 2, 3))"
    return f'_base_ = {base!r}\nmodel = dict(backbone={resnet}, neck=dict(in_channels=[64, 128, 256, 512]))\n{text}\n'


def plain(node: Any) -> Any:
    """Without the marks that mmengine leaves in inherited dicts, and with tuples told from lists."""
    if isinstance(node, Mapping):
        return {key: plain(value) for key, value in node.items() if key != '_scope_'}
    return type(node)(plain(value) for value in node) if isinstance(node, (list, tuple)) else node


def narrow(node: Any) -> Any:
    """The tiny tower's channels in the place of the ViT-B/16's."""
    if isinstance(node, dict):
        return {key: 16 if key == 'in_channels' and value == 768 else narrow(value) for key, value in node.items()}
    if isinstance(node, list) and node and set(map(str, node)) == {'768'}:
        return [16] * len(node)
    return [narrow(value) for value in node] if isinstance(node, list) else node


@pytest.mark.parametrize('stock', BY_HAND, ids=BY_HAND.get)
def test_writes_what_was_written_by_hand(call, folder, stock):
    code, output, errors = call(stock, '-o', 'made.py', *([] if stock in RUN else ['--no-check']))
    assert code == 0, errors
    made, by_hand = Config.fromfile('made.py'), Config.fromfile(ROOT / 'configs' / 'swap' / f'{BY_HAND[stock]}.py')
    expected = narrow(plain(by_hand.model))
    expected['backbone']['arch'] = TINY
    assert plain(made.model) == expected
    assert made.default_scope == by_hand.default_scope and made.train_dataloader == by_hand.train_dataloader
    assert output.startswith(f'made.py: {stock} with these changes, {"which run" if stock in RUN else "not run"}\n')
    assert f'note: {CHECKPOINT} is not there' in output
    assert sorted(path.name for path in folder.iterdir()) == ['made.py', 'tiny.json']


@pytest.mark.parametrize('stock', [RETINANET, 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'])
def test_written_config_builds(call, stock):
    assert call(stock, '-o', 'made.py', '--no-check')[0] == 0
    cfg = Config.fromfile('made.py')
    cfg.model.backbone.checkpoint = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__ == 'DenseVLMBackbone' and model.backbone.out_channels == [16] * 4


def test_text_is_short_and_says_all_that_changes(call):
    stock = 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'
    code, output, _ = call(stock, '-o', 'made.py', '--trainable', 2, '--no-check')
    assert code == 0
    assert [line for line in output.splitlines() if line.startswith('  ')] == [
        '  model.data_preprocessor.mean: [123.675, 116.28, 103.53] -> [122.771, 116.746, 104.094]',
        '  model.data_preprocessor.std: [58.395, 57.12, 57.375] -> [68.501, 66.632, 70.323]',
        "  model.pretrained: 'open-mmlab://resnet50_v1c' -> None",
        '  model.backbone: ResNetV1c -> densevlm_mm.DenseVLMBackbone',
        '  model.decode_head.in_channels: [256, 512, 1024, 2048] -> [16, 16, 16, 16]',
        '  model.auxiliary_head.in_channels: 1024 -> 16',
    ]
    text = Path('made.py').read_text()
    assert text.startswith(f'_base_ = {stock!r}\n\nmodel = dict(\n')
    assert text.endswith('    auxiliary_head=dict(in_channels=16),\n)\n')
    assert '        trainable=2,\n' in text
    assert len(text.splitlines()) < 40


def test_base_is_found_wherever_both_files_go(call, folder):
    (folder / 'stock').mkdir()
    (folder / 'stock' / 'mine.py').write_text(small('my_variable = 7'))
    assert call('stock/mine.py', '-o', folder / 'made' / 'deep' / 'new.py')[0] == 0
    text = (folder / 'made' / 'deep' / 'new.py').read_text()
    assert text.startswith("_base_ = '../../stock/mine.py'\n")
    assert str(folder) not in text
    (folder / 'elsewhere').mkdir()
    for name in ('stock', 'made'):
        (folder / name).rename(folder / 'elsewhere' / name)
    assert Config.fromfile('elsewhere/made/deep/new.py').my_variable == 7


def test_weights_of_the_old_model_are_dropped(call):
    weights = "load_from = 'old.pth'\nmodel['init_cfg'] = dict(type='Pretrained', checkpoint='old.pth')"
    Path('mine.py').write_text(small(weights))
    code, output, _ = call('mine.py', '-o', 'made.py')
    made = Config.fromfile('made.py')
    assert code == 0 and made.load_from is None and made.model.init_cfg is None
    assert "  load_from: 'old.pth' -> None" in output.splitlines()


def test_images_reach_the_tower_in_rgb(call):
    order = "model['data_preprocessor'] = dict(bgr_to_rgb=False, rgb_to_bgr=True)"
    Path('mine.py').write_text(small(order))
    assert call('mine.py', '-o', 'made.py')[0] == 0
    preprocessor = Config.fromfile('made.py').model.data_preprocessor
    assert (preprocessor.bgr_to_rgb, preprocessor.rgb_to_bgr) == (True, False)


def test_first_of_several_necks_follows(call):
    necks = "[dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=64, num_outs=5), dict(type='BFP', {})]"
    necks = necks.format('in_channels=64, num_levels=5')
    Path('mine.py').write_text(small(f"model['neck'] = {necks}\nmodel['bbox_head'] = dict(in_channels=64)"))
    code, output, _ = call('mine.py', '-o', 'made.py')
    assert code == 0
    assert '  model.neck.0.in_channels: [64, 128, 256, 512] -> [16, 16, 16, 16]' in output.splitlines()
    assert [neck.in_channels for neck in Config.fromfile('made.py').model.neck] == [[16] * 4, 64]


def test_channels_inside_a_head_stay_and_are_named(call):
    stock = 'mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py'
    code, output, _ = call(stock, '-o', 'made.py')
    head = Config.fromfile('made.py').model.decode_head
    assert code == 0
    assert (head.kernel_generate_head.in_channels, head.kernel_update_head[0].in_channels) == (16, 512)
    assert '  model.decode_head.kernel_update_head.0.in_channels: 512 stays, since it is not of the backbone' in output
    code, _, errors = call(stock, '-o', 'unsure.py', '--no-check')
    assert code == 2 and 'kernel_update_head.0.in_channels=512' in errors and not Path('unsure.py').exists()


def test_checkpoint_that_is_there_is_read(call):
    torch.save({'state_dict': load_vlm(TINY).state_dict()}, 'tower.pt')
    Path('mine.py').write_text(small())
    code, output, _ = call('mine.py', '-o', 'made.py', '--out-indices', 2, 4, 6, 8, checkpoint='tower.pt')
    assert code == 0 and 'note' not in output
    assert Config.fromfile('made.py').model.backbone.out_indices == (2, 4, 6, 8)
    torch.save({'state_dict': {'visual.nothing': torch.zeros(1)}}, 'tower.pt')
    code, _, errors = call('mine.py', '-o', 'other.py', checkpoint='tower.pt')
    assert code == 2 and 'tower.pt' in errors and not Path('other.py').exists()


def test_mean_of_a_pretrained_tag(monkeypatch):
    module = importlib.import_module('densevlm_mm.apis.swap_backbone')
    monkeypatch.setattr(module, 'load_vlm', lambda arch, checkpoint: load_vlm(TINY))
    Path('mine.py').write_text(small())
    swap_backbone('mine.py', 'made.py', arch='ViT-L-14', checkpoint='laion2b_s32b_b82k', check=False)
    assert Config.fromfile('made.py').model.data_preprocessor.mean == [127.5] * 3


HEAD = "model = dict(type='RetinaNet', data_preprocessor=dict(type='DetDataPreprocessor'), {})"
RESNET = "backbone=dict(type='ResNet', depth=18)"
STAGES = 'num_stages=4, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)'
ICNET = f"""model['backbone'] = dict(
    _delete_=True, type='mmseg.ICNet', layer_channels=(128, 512),
    backbone_cfg=dict(type='mmseg.ResNetV1c', depth=18, {STAGES}),
)"""


@pytest.mark.parametrize(('text', 'message'), [
    ('a = 1', 'has no model'),
    ("from mmdet.models import RetinaNet\nmodel = dict(type=RetinaNet, neck=None)", 'read_base'),
    (HEAD.format("neck=dict(type='FPN')"), 'there is no model.backbone: nothing'),
    (HEAD.format(f'detector=dict({RESNET})'), 'no model.backbone, only model.detector.backbone'),
    (HEAD.format(f'{RESNET}, neck=[dict(rfp_{RESNET})]'), 'backbones, model.backbone, model.neck.0.rfp_backbone'),
    (f"model = dict(type='RetinaNet', {RESNET})", 'model.data_preprocessor'),
    (small("train_pipeline = [dict(type='Normalize', mean=[0, 0, 0])]"), 'the pipeline normalises'),
    (small('optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))'), 'optim_wrapper sets learning rates by'),
    (small("model['backbone']['type'] = 'NoNet'"), 'the backbone NoNet cannot be run'),
    (small(ICNET), 'which have no whole strides'),
    (small("model['neck'] = dict(in_channels=[512, 256, 128, 64])"), 'model.neck.in_channels=[512, 256, 128, 64]'),
    (small("model['neck'] = dict(in_channels=[64, 128, 256])"), 'nothing has the channels [64, 128, 256, 512]'),
    (small("model['neck'] = None\nmodel['bbox_head'] = dict(in_channels=512)"), 'the new model does not run'),
])  # fmt: skip
def test_refusals_name_the_cause_and_leave_nothing(call, folder, text, message):
    Path('mine.py').write_text(text)
    code, _, errors = call('mine.py', '-o', 'made.py')
    assert code == 2 and errors.startswith('error: ') and message in errors
    assert sorted(path.name for path in folder.iterdir()) == ['mine.py', 'tiny.json']


def test_other_strides_are_refused_behind_a_neck(call, monkeypatch):
    """The check compares what the neck gives, and is not fooled by channels that fit."""
    module = importlib.import_module('densevlm_mm.apis.swap_backbone')
    honest = module.run_backbone
    monkeypatch.setattr(module, 'run_backbone', lambda cfg: [level._replace(stride=8) for level in honest(cfg)])
    Path('mine.py').write_text(small())
    with pytest.raises(SwapError, match='where the old one gave'):
        swap_backbone('mine.py', 'made.py', arch=TINY, checkpoint=None)
    assert not Path('made.py').exists()


@pytest.mark.parametrize(('arguments', 'message'), [
    (['gone.py', '-o', 'made.py'], 'gone.py cannot be read'),
    (['mmdet::no/config.py', '-o', 'made.py'], 'mmdet::no/config.py cannot be read'),
    (['mine.py', '-o', 'mine.py', '--force'], 'is the config itself'),
    (['mine.py', '-o', 'made.txt'], 'must be a .py file'),
    (['mine.py', '-o', 'made.py', '--out-indices', '11'], 'has 4 levels: name as many of the 12 blocks'),
    (['mine.py', '-o', 'made.py', '--out-indices', '3', '5', '7', '99'], '99'),
    (['mine.py', '-o', 'made.py', '--trainable', '13'], 'trainable must be in 0..12'),
    (['mine.py', '-o', 'there.py'], 'there.py exists already'),
    (['mmdet::no/config.py', '-o', 'there.py', '--force'], 'cannot be read'),
])  # fmt: skip
def test_bad_arguments_touch_no_file(call, folder, arguments, message):
    Path('mine.py').write_text(small())
    Path('there.py').write_text('precious = 1')
    code, _, errors = call(*arguments)
    assert code == 2 and message in errors
    assert Path('mine.py').read_text() == small() and Path('there.py').read_text() == 'precious = 1'
    assert sorted(path.name for path in folder.iterdir()) == ['mine.py', 'there.py', 'tiny.json']


def test_force_overwrites(call):
    Path('mine.py').write_text(small())
    Path('there.py').write_text('old = 1')
    assert call('mine.py', '-o', 'there.py', '--force')[0] == 0
    assert 'old' not in Config.fromfile('there.py')


def test_another_arch_needs_its_weights(call):
    code, _, errors = call(RETINANET, '-o', 'made.py', checkpoint=None)
    assert code == 2 and '--arch tiny.json needs its --checkpoint' in errors
