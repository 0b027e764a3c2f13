"""tools/model_converters/convert_fvit.py, from a file under the described names to one that a detector loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import read_state_dict

TOOL = 'model_converters/convert_fvit'

CONFIG = """
norm = dict(type='BN')
layer = dict(type='RoIAlign', output_size=7, sampling_ratio=0)
extractor = dict(type='SingleRoIExtractor', roi_layer=layer, out_channels=8, featmap_strides=[2, 4, 8, 16])
nms = dict(nms_pre=10, max_per_img=5, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)
model = dict(
    type='densevlm_mm.FViT',
    vocabulary=['car', 'tree'],
    backbone=dict(
        type='densevlm_mm.DenseVLMBackbone', arch={arch}, checkpoint='checkpoints/gone.pt', out_indices=(0, 0, 1, 1),
        strides=None, with_dense=True),
    neck=[
        dict(type='densevlm_mm.TokenPyramid', in_channels=32, norm_cfg=norm),
        dict(type='FPN', in_channels=[32] * 4, out_channels=8, num_outs=5, norm_cfg=norm),
    ],
    rpn_head=dict(
        type='RPNHead', in_channels=8, feat_channels=8, num_convs=2,
        anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[1], strides=[2, 4, 8, 16, 32])),
    roi_head=dict(
        type='densevlm_mm.FViTRoIHead',
        score_fusion=dict(type='densevlm_mm.ScoreFusion', alpha=0.1, beta=0.8, temperature=75.0),
        bbox_roi_extractor=extractor,
        bbox_head=dict(
            type='ConvFCBBoxHead', num_shared_convs=1, num_shared_fcs=1, num_cls_fcs=1, num_reg_fcs=1, in_channels=8,
            conv_out_channels=8, fc_out_channels=16, norm_cfg=norm, reg_class_agnostic=True,
            cls_predictor_cfg=dict(type='densevlm_mm.TextEmbeddingClassifier'),
            loss_cls=dict(type='densevlm_mm.VocabularyCrossEntropyLoss'))),
    train_cfg=None,
    test_cfg=dict(rpn=nms, rcnn=dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5)),
)
"""
# our names -> the described ones, but for the tower's, of which EVA-CLIP's own code knows best
RELEASED = {
    r'^neck\.1\.': 'neck.',
    r'^neck\.0\.levels\.0\.': 'backbone.interpolate1.',
    r'^neck\.0\.levels\.1\.': 'backbone.interpolate2.',
    r'\.fc_cls\.temperature$': '.detect_temperature',
    r'^backbone\.tower\.': 'backbone.visual.',
}


@pytest.fixture(scope='module')
def config(tmp_path_factory, tiny_arch) -> Path:
    path = tmp_path_factory.mktemp('config') / 'fvit.py'
    path.write_text(CONFIG.format(arch=tiny_arch()))
    return path


@pytest.fixture(scope='module')
def released(config) -> dict[str, torch.Tensor]:
    """A detector's tensors under the described names."""
    model = Config.fromfile(config).model
    model.backbone.checkpoint = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(model)
    state = {key: value for key, value in detector.state_dict().items() if key not in detector.records()}
    for ours, theirs in RELEASED.items():
        state = {re.sub(ours, theirs, name): value for name, value in state.items()}
    texts = torch.nn.functional.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    return {**state, 'roi_head.bbox_head.all_embeddings': texts}


@pytest.fixture
def source(released, tmp_path) -> Path:
    torch.save({'meta': {'epoch': 3}, 'state_dict': released, 'optimizer': {}}, tmp_path / 'released.pth')
    return tmp_path / 'released.pth'


def test_convert(call, config, released, source, tmp_path):
    target = tmp_path / 'ours.pth'
    code, output, errors = call(TOOL, source, config, '-o', target)
    state = read_state_dict(target)
    assert (code, errors) == (0, '')
    assert output == f'{target}: {len(released) + 1} tensors, loaded back strictly\nleft out: optimizer\n'
    texts = released['roi_head.bbox_head.all_embeddings']
    assert torch.equal(state['roi_head.bbox_head.fc_cls.texts'], texts[:2])
    assert torch.equal(state['roi_head.bbox_head.fc_cls.background_text'], texts[2])
    assert torch.equal(state['neck.0.levels.0.3.weight'], released['backbone.interpolate1.3.weight'])


def test_refusals_are_short_and_leave_nothing(call, config, source, tmp_path):
    target, other = tmp_path / 'out' / 'ours.pth', tmp_path / 'other.py'
    (tmp_path / 'broken.pth').write_bytes(b'no checkpoint')
    other.write_text("data_root = 'data'")
    cases = {
        'gone.pth does not exist': [tmp_path / 'gone.pth', config, '-o', target],
        'broken.pth is': [tmp_path / 'broken.pth', config, '-o', target],
        'gone.py': [source, tmp_path / 'gone.py', '-o', target],
        'has no model': [source, other, '-o', target],
        'is the source itself': [source, config, '-o', source],
        'all_embeddings: (3, 16) in the file, (4, 16) in the model': [
            source, config, '-o', target, '--cfg-options', 'model.vocabulary=[car,tree,star]',
        ],
    }  # fmt: skip
    for message, arguments in cases.items():
        code, output, errors = call(TOOL, *arguments)
        assert (code, output) == (2, '')
        assert errors.startswith('error: ')
        assert message in errors
    assert not target.parent.exists()
