"""What trains, by name and by number, and that checkpoints do not show how."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from torch import nn

from densevlm_mm.seg import CATSeg
from densevlm_mm.vlm import VLM, load_vlm

EVA = ('EVA02-CLIP-B-16', 'EVA02-CLIP-L-14-336')
OPENAI = ('ViT-B-16-quickgelu', 'ViT-L-14-336-quickgelu')


def on_paper(arch: str, mode: str, text: str) -> CATSeg:
    """A segmentor of full size, without memory for its weights."""
    with torch.device('meta'):
        blocks = (7, 15) if '-L-' in arch else (3, 7)
        vlm = {'arch': arch, 'device': 'meta', 'dense_mode': mode}
        return CATSeg(vlm, ['car', 'tree'], guidance_blocks=blocks, finetune_text=text)


def millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6


@pytest.mark.parametrize(
    ('arch', 'mode', 'text', 'total', 'width'),
    [
        (OPENAI[0], 'vanilla', 'qv', 25.1, 768),
        (OPENAI[1], 'vanilla', 'qv', 70.3, 1024),
        (EVA[0], 'csa', 'in_proj', 28.3, 768),
        (EVA[1], 'csa', 'in_proj', 77.3, 1024),
    ],
)
def test_numbers_of_the_papers(arch, mode, text, total, width):
    model = on_paper(arch, mode, text)
    assert round(millions(model), 1) == total
    assert round(millions(model.upsamplers), 3) == {768: 2.360, 1024: 3.146}[width]
    # the papers count the last block's queries, which this mode does not use
    without = on_paper(arch, 'value', text)
    assert millions(model) - millions(without) == pytest.approx(width**2 / 1e6)


def trained_names(model: nn.Module, prefix: str) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad and name.startswith(prefix)}


def test_names_on_eva(build):
    model = build()
    blocks = 'vlm.visual.trunk.blocks'
    expected = {f'{blocks}.0.attn.q_proj.weight', f'{blocks}.0.attn.v_proj.weight', f'{blocks}.1.attn.v_proj.weight'}
    assert trained_names(model, 'vlm.visual.') == expected
    fused = 'vlm.text.transformer.resblocks.0.attn.parametrizations.in_proj_weight'
    assert trained_names(model, 'vlm.text.') == {f'{fused}.original0', f'{fused}.original2'}
    assert trained_names(model, 'vlm.') == expected | trained_names(model, 'vlm.text.')
    heads = {name for name, _ in model.named_parameters() if name.startswith(('aggregator.', 'upsamplers.'))}
    assert heads <= trained_names(model, '')


@pytest.mark.parametrize('mode', ['value', 'kk', 'csa'])
@pytest.mark.parametrize('what', ['qv', 'in_proj', 'attention', 'all'])
def test_all_that_trains_gets_a_gradient_on_eva(build, clip, samples, mode, what):
    check_gradients(build(vlm={**clip, 'dense_mode': mode}, finetune_visual=what, finetune_text=what), samples)


@pytest.mark.parametrize('mode', ['value', 'clearclip'])
@pytest.mark.parametrize('what', ['qv', 'in_proj', 'attention', 'all'])
def test_all_that_trains_gets_a_gradient_on_openai(build, openai_clip, samples, mode, what):
    check_gradients(build(vlm={**openai_clip, 'dense_mode': mode}, finetune_visual=what, finetune_text=what), samples)


def check_gradients(model: CATSeg, samples) -> None:
    labels = torch.randint(3, (32, 32))
    model.train().loss(torch.randn(1, 3, 32, 32), samples(labels))['loss_seg'].backward()
    named = dict(model.named_parameters())
    assert [name for name, p in named.items() if p.requires_grad and p.grad is None] == []
    assert [name for name, p in named.items() if not p.requires_grad and p.grad is not None] == []


def test_a_step_moves_queries_and_values_and_leaves_keys(build, openai_clip, samples):
    model = build(vlm=openai_clip).train()
    before = copy.deepcopy(model.vlm.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    model.loss(torch.randn(1, 3, 32, 32), samples(torch.randint(3, (32, 32))))['loss_seg'].backward()
    optimizer.step()
    after = model.vlm.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith('in_proj_weight')}
    for name in moved:
        rows = [torch.equal(*parts) for parts in zip(before[name].chunk(3), after[name].chunk(3), strict=True)]
        last = name == 'visual.trunk.transformer.resblocks.2.attn.in_proj_weight'
        assert rows == [last, True, False]  # the mode 'value' has no use for the last block's queries


@pytest.mark.parametrize('what', ['qv', 'all'])
def test_checkpoints_are_those_of_the_plain_model(build, openai_clip, tmp_path, what):
    model = build(vlm=openai_clip, finetune_visual=what, finetune_text=what)
    plain = load_vlm(**openai_clip)
    for state in (model.vlm.state_dict(), get_state_dict(model.vlm)):
        assert set(state) == set(plain.state_dict())
        assert all(torch.equal(value, plain.state_dict()[name]) for name, value in state.items())
    with torch.no_grad():
        next(p for p in model.vlm.parameters() if p.requires_grad).add_(1)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'catseg.pth')
    trained = load_vlm(openai_clip['arch'], tmp_path / 'catseg.pth')  # the VLM in a segmentor's file
    assert not torch.equal(trained.encode_dense(torch.ones(1, 3, 32, 32)), plain.encode_dense(torch.ones(1, 3, 32, 32)))
    for load in (lambda m, state: m.load_state_dict(state), lambda m, state: load_state_dict(m, state, strict=True)):
        other = build(vlm=openai_clip, finetune_visual='qv', finetune_text='qv')
        load(other, copy.deepcopy(model.state_dict()))
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_missing_projection_is_still_missed(build, openai_clip):
    model = build(vlm=openai_clip)
    state = model.state_dict()
    name = 'vlm.text.transformer.resblocks.0.attn.in_proj_weight'
    del state[name]
    with pytest.raises(RuntimeError, match='resblocks.0.attn.parametrizations'):
        model.load_state_dict(state)


def averaged_step(model: CATSeg, **options: bool) -> dict[str, tuple[nn.Parameter, ...]]:
    """Per weight what it was, what it became by a step, and what half of either is by an averaged model."""
    average = ExponentialMovingAverage(model, momentum=0.5, **options)
    model.query_texts()  # kept, but as no buffer, of which the copy has none
    average.update_parameters(model)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.requires_grad)
    average.update_parameters(model)
    after, found = model.state_dict(), average.module.state_dict()
    return {name: (before[name], after[name], found[name]) for name in found if found[name].is_floating_point()}


def test_parts_are_averaged(build, openai_clip):
    weights = averaged_step(build(vlm=openai_clip))
    moved = {name for name, (before, after, _) in weights.items() if not torch.equal(before, after)}
    assert any(name.endswith('in_proj_weight') for name in moved)
    for before, after, found in weights.values():
        torch.testing.assert_close(found, (before + after) / 2)


def test_parts_are_not_averaged_by_way_of_the_state_dict(build, openai_clip):
    """Why `take_apart` wants ``update_buffers=False``; once this fails, that sentence can go."""
    weights = averaged_step(build(vlm=openai_clip), update_buffers=True)
    before, after, found = weights['vlm.text.transformer.resblocks.0.attn.in_proj_weight']
    assert torch.equal(found, before)
    assert not torch.equal(found, after)


@pytest.mark.parametrize('option', ['finetune_visual', 'finetune_text'])
def test_unknown_options_are_refused(build, option):
    with pytest.raises(ValueError, match="'none', 'qv'"):
        build(**{option: 'some'})


def test_timm_towers_train_queries_and_values(build, tiny_arch, samples):
    vision = {'timm_model_name': 'vit_tiny_patch16_224', 'timm_pool': 'map', 'timm_proj': 'none', 'image_size': 32}
    arch = {**tiny_arch(embed_dim=192), 'vision_cfg': vision}
    model = build(vlm={'arch': arch}, clip_size=64, finetune_text='none')
    names = trained_names(model, 'vlm.')
    assert len(names) == 2 * 12
    assert all('.attn.qkv.parametrizations.weight.original' in name for name in names)
    assert set(model.vlm.state_dict()) == set(VLM(arch).state_dict())
