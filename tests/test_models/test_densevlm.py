"""The DenseVLM distiller: what it computes, what learns, what its teacher leaves behind, which configs it refuses."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from densevlm_mm.datasets import PackRegions, SampleGridRegions, grid_boxes
from densevlm_mm.models import DecoupledAlignmentLoss, DenseVLM
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import class_embeddings, load_vlm

VOCABULARY = {'things': ['car', 'tree', 'ball'], 'stuff': ['sky', 'water']}
NAMES = ('car', 'tree', 'ball', 'sky', 'water')
TEMPLATES = ['a photo of a {}.']
BLOCK = 'vlm.visual.trunk.blocks'


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory, tiny_arch) -> dict[str, dict]:
    """Arguments of `load_vlm` for a student and a wider teacher with weights on disk."""
    folder = tmp_path_factory.mktemp('checkpoints')
    parts = {'student': tiny_arch(), 'teacher': tiny_arch(width=48, embed_dim=24)}
    for number, (who, arch) in enumerate(parts.items()):
        torch.manual_seed(number)
        torch.save({'state_dict': load_vlm(arch).state_dict()}, folder / f'{who}.pt')
    return {who: {'arch': arch, 'checkpoint': str(folder / f'{who}.pt')} for who, arch in parts.items()}


@pytest.fixture
def build(checkpoints) -> Callable[..., DenseVLM]:
    """Builds a distiller from its config with some entries replaced; dicts are merged."""

    def make(**changes: object) -> DenseVLM:
        config = {
            'type': 'densevlm_mm.DenseVLM',
            'student': {**checkpoints['student'], 'trainable_blocks': 2},
            'teacher': checkpoints['teacher'],
            'vocabulary': VOCABULARY,
            # the similarities of random models differ little: one of five classes is kept at 0.2 and a bit
            'loss': {'type': 'densevlm_mm.DecoupledAlignmentLoss', 'score_thr': 0.205},
            'templates': TEMPLATES,
        }
        for key, value in changes.items():
            merge = isinstance(value, dict) and key in ('student', 'teacher', 'loss')
            config[key] = {**config[key], **value} if merge else value
        return MODELS.build(config)

    return make


@pytest.fixture
def batch() -> tuple[Tensor, list[BaseDataElement]]:
    """Two images of 64 px with grids of 2 x 3 and 2 x 2."""
    samples = []
    for rows, cols in ((2, 3), (2, 2)):
        regions = InstanceData(boxes=grid_boxes(64, 64, rows, cols) / 64)
        samples.append(BaseDataElement(gt_regions=regions))
    return torch.randn(2, 3, 64, 64), samples


def total(losses: dict[str, Tensor]) -> Tensor:
    return losses['loss_thing'] + losses['loss_stuff']


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_loss_is_that_of_the_two_models_box_features(build, checkpoints, batch):
    images, samples = batch
    student, teacher = (load_vlm(**checkpoints[who]) for who in ('student', 'teacher'))
    boxes = [sample.gt_regions.boxes for sample in samples]
    expected = DecoupledAlignmentLoss(3, score_thr=0.205)(
        student.encode_boxes(images, boxes),
        teacher.encode_boxes(images, boxes),
        *(class_embeddings(vlm, NAMES, TEMPLATES) for vlm in (student, teacher)),
    )
    losses = build()(images, samples, mode='loss')
    assert losses['num_regions'] == 10
    assert losses['num_kept'] > 0
    assert total(losses) > 0
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_one_training_step_lowers_the_loss(build, batch):
    model = build().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    before = total(model(*batch, mode='loss'))
    before.backward()
    optimizer.step()
    assert total(model(*batch, mode='loss')) < before


@pytest.mark.parametrize('blocks', [1, 2])
def test_gradients_reach_exactly_the_trainable_blocks(build, batch, blocks):
    model = build(student={'trainable_blocks': blocks}).train()
    total(model(*batch, mode='loss')).backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    unused = {f'{BLOCK}.1.attn.{name}' for name in ('q_proj.weight', 'q_proj.bias', 'k_proj.weight')}
    inside = {name for name, _ in model.named_parameters() if name.startswith(tuple(f'{BLOCK}.{i}.' for i in (1, 0)))}
    if blocks == 1:
        inside = {name for name in inside if name.startswith(f'{BLOCK}.1.')}
    assert reached == trainable(model) == inside - unused
    assert unused <= inside


def test_what_is_frozen(build):
    frozen = {name for name, parameter in build().named_parameters() if not parameter.requires_grad}
    for name in ('cls_token', 'pos_embed', 'patch_embed.proj.weight', 'norm.weight', 'head.weight', 'head.bias'):
        assert f'vlm.visual.trunk.{name}' in frozen
    assert {'vlm.logit_scale', 'vlm.text.token_embedding.weight', 'vlm.text.text_projection'} <= frozen


def test_weight_decay_spares_vectors_only(build):
    """By the optimiser settings of the main recipe."""
    model = build()
    wrapper = build_optim_wrapper(
        model,
        {
            'optimizer': {'type': 'AdamW', 'lr': 1e-5, 'weight_decay': 0.1},
            'constructor': 'densevlm_mm.DecayGroups',
        },
    )
    decay = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups for p in group['params']}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert decay.pop(id(parameter)) == (0.1 if parameter.ndim > 1 else 0.0), name
    assert not decay  # nothing frozen, and nothing of the teacher


def test_number_of_decayed_parameters_of_vit_b16():
    """The reference has 84 and 169, among them four that never get a gradient and are frozen here."""
    with torch.device('meta'):
        visual = load_vlm('EVA02-CLIP-B-16', device='meta').visual
    visual.set_trainable(12)
    shapes = [parameter.ndim for parameter in visual.parameters() if parameter.requires_grad]
    assert sum(ndim > 1 for ndim in shapes) == 84 - 2  # queries and keys of the last block
    assert sum(ndim < 2 for ndim in shapes) == 169 - 2  # bias of its queries; logit scale


def test_teacher_is_no_part_of_the_model(build, checkpoints):
    model = build()
    teacher = dict(model.teacher.named_parameters())
    own = {id(parameter) for parameter in model.parameters()}
    assert teacher and not any(id(parameter) in own for parameter in teacher.values())
    assert not any(parameter.requires_grad for parameter in teacher.values())
    assert not any('teacher' in name for name, _ in model.named_modules())
    assert set(model.state_dict()) == {f'vlm.{name}' for name in load_vlm(checkpoints['student']['arch']).state_dict()}
    assert not any('text' in name for name in teacher)
    model.train()
    assert not any(module.training for module in model.teacher.modules())


def test_teacher_follows_to_other_devices_and_dtypes(build, batch):
    model = build().double()
    assert {parameter.dtype for parameter in model.teacher.parameters()} == {torch.float64}
    assert {model.student_text.dtype, model.teacher_text.dtype} == {torch.float64}
    model.to('meta')
    assert {parameter.device.type for parameter in model.teacher.parameters()} == {'meta'}


def test_teacher_in_half_precision(build, batch):
    images, samples = batch
    exact, half = build(), build(teacher={'dtype': 'bfloat16'})
    assert {parameter.dtype for parameter in half.teacher.parameters()} == {torch.bfloat16}
    boxes = torch.stack([sample.gt_regions.boxes[:4] for sample in samples])
    features = half.teacher(images, boxes)
    assert features.dtype == torch.float32
    assert F.cosine_similarity(features, exact.teacher(images, boxes), dim=-1).min() > 0.9995
    torch.testing.assert_close(half.teacher_text, exact.teacher_text, rtol=0, atol=0.02)
    assert total(half(images, samples, mode='loss')).isfinite()


def test_checkpoint_is_one_of_the_student(build, checkpoints, batch, tmp_path):
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, tmp_path / 'iter_1.pth')
    vlm = load_vlm(checkpoints['student']['arch'], tmp_path / 'iter_1.pth')
    torch.testing.assert_close(vlm.encode_dense(batch[0]), model(batch[0]), rtol=0, atol=0)
    assert not torch.equal(vlm.logit_scale, load_vlm(**checkpoints['student']).logit_scale)


def test_modes(build, batch):
    images, samples = batch
    model = build(eval_vocabulary=VOCABULARY, eval_templates=TEMPLATES).eval()
    assert set(model(images, samples, mode='loss')) >= {'loss_thing', 'loss_stuff', 'num_kept'}
    dense = model(images)
    assert dense.shape == (2, 16, 8, 8)
    torch.testing.assert_close(dense, model.student.encode_dense(images))
    for sample in samples:
        sample.gt_regions.masks = torch.ones(len(sample.gt_regions), 8, 8)
    predicted = model(images, samples, mode='predict')
    assert [sample.pred_regions.box_logits.shape for sample in predicted] == [(6, 5), (4, 5)]
    with pytest.raises(ValueError, match="'loss', 'predict' or 'tensor', got 'los'"):
        model(images, samples, mode='los')


def test_vocabulary_is_put_things_first(build, tmp_path):
    categories = [{'name': name, 'isthing': int(name in VOCABULARY['things'])} for name in sorted(NAMES)]
    (tmp_path / 'list.json').write_text(json.dumps(categories))
    model = build(vocabulary=str(tmp_path / 'list.json'))
    assert model.vocabulary.names == ('ball', 'car', 'tree', 'sky', 'water')
    assert model.alignment_loss.num_things == 3
    expected = class_embeddings(model.student, model.vocabulary.names, TEMPLATES)
    torch.testing.assert_close(model.student_text, expected)


def test_num_things_of_the_config_wins(build):
    assert build(loss={'num_things': 2}).alignment_loss.num_things == 2


def test_text_may_be_normalised(build):
    model = build(normalize_text=True, templates=['a {}.', 'photo of a {}.'])
    released = build(templates=['a {}.', 'photo of a {}.'])
    for text, raw in ((model.student_text, released.student_text), (model.teacher_text, released.teacher_text)):
        torch.testing.assert_close(text, F.normalize(raw, dim=-1))
        assert (raw.norm(dim=-1) < 1 - 1e-4).all()


def test_synonyms_stand_for_their_class(build, checkpoints, tmp_path):
    vocabulary = {**VOCABULARY, 'synonyms': {'sky': ['sky', 'photo']}}
    cache = {'folder': str(tmp_path)}
    for options in ({}, {'teacher_cache': cache}, {'teacher_cache': cache}):
        model = build(vocabulary=vocabulary, **options)
        sky = model.vocabulary.names.index('sky')
        for who, text in (('student', model.student_text), ('teacher', model.teacher_text)):
            expected = class_embeddings(load_vlm(**checkpoints[who]), [*model.vocabulary.names, 'photo'], TEMPLATES)
            expected, other = expected[:-1].clone(), expected[-1]
            expected[sky] = (expected[sky] + other) / 2
            torch.testing.assert_close(text, expected)


@pytest.mark.parametrize(
    ('vocabulary', 'message'),
    [
        ({'things': ['car']}, '1 thing and 0 stuff classes; decoupled alignment needs both'),
        ({'stuff': ['sky']}, '0 thing and 1 stuff classes'),
        (['car', 'sky'], '2 thing and 0 stuff classes'),
        ({'things': [], 'stuff': []}, 'the vocabulary is empty'),
        ({'thing': ['car'], 'stuff': ['sky']}, "got .'stuff', 'thing'."),
        ('no_such_list', "unknown vocabulary 'no_such_list'"),
        ({'things': ['car'], 'stuff': ['car']}, "occur twice: .'car'."),
        ({'things': ['zebra'], 'stuff': ['sky']}, "unknown words .'zebra'."),
    ],
)
def test_unusable_vocabularies(build, vocabulary, message):
    with pytest.raises(ValueError, match=message):
        build(vocabulary=vocabulary)


@pytest.fixture
def embedding_files(tmp_path) -> dict[str, str]:
    generator = np.random.default_rng(0)
    for who, width in (('student', 16), ('teacher', 24)):
        np.save(tmp_path / f'{who}.npy', generator.standard_normal((5, width), np.float32))
    return {who: str(tmp_path / f'{who}.npy') for who in ('student', 'teacher')}


def test_ready_text_embeddings_are_used_as_they_are(build, embedding_files):
    model = build(text_embeddings=embedding_files)
    for who in ('student', 'teacher'):
        np.testing.assert_array_equal(getattr(model, f'{who}_text').numpy(), np.load(embedding_files[who]))
    half = build(text_embeddings={'teacher': embedding_files['teacher']})
    assert torch.equal(half.teacher_text, model.teacher_text)
    assert torch.equal(half.student_text, build().student_text)
    normalized = build(text_embeddings=embedding_files, normalize_text=True)
    for who in ('student', 'teacher'):
        torch.testing.assert_close(
            getattr(normalized, f'{who}_text'), F.normalize(getattr(model, f'{who}_text'), dim=-1)
        )


def test_ready_text_embeddings_that_do_not_fit(build, embedding_files, tmp_path):
    swapped = {'student': embedding_files['teacher']}
    with pytest.raises(ValueError, match="teacher.npy has width 24, but this model's text space has 16"):
        build(text_embeddings=swapped)
    with pytest.raises(ValueError, match='but the vocabulary has 4 classes'):
        build(text_embeddings=embedding_files, vocabulary={'things': ['car', 'tree'], 'stuff': ['sky', 'sand']})
    with pytest.raises(ValueError, match="'studnet'"):
        build(text_embeddings={'studnet': embedding_files['student']})
    with pytest.raises(FileNotFoundError, match='gone.npy'):
        build(text_embeddings={'teacher': str(tmp_path / 'gone.npy')})
    torch.save({'embeddings': torch.ones(5, 16), 'names': ['car', 'tree', 'cup', 'sky', 'water']}, tmp_path / 'e.pt')
    with pytest.raises(ValueError, match="position 2 is 'cup', not 'ball'"):
        build(text_embeddings={'student': str(tmp_path / 'e.pt')})


def test_ready_text_embeddings_need_things_first(build, embedding_files, tmp_path):
    categories = [{'name': name, 'isthing': int(name in VOCABULARY['things'])} for name in sorted(NAMES, reverse=True)]
    (tmp_path / 'list.json').write_text(json.dumps(categories))
    with pytest.raises(ValueError, match='must list its things first'):
        build(vocabulary=str(tmp_path / 'list.json'), text_embeddings=embedding_files)


def test_teacher_cache_stands_in_for_the_teacher(build, tmp_path):
    image = {'img': np.full((64, 64, 3), 99, np.uint8), 'ori_shape': (64, 64), 'img_shape': (64, 64), 'scale': 1.0}
    packed = PackRegions(fingerprint=True)(SampleGridRegions()(image))
    inputs, samples = packed['inputs'][None].float() / 64 - 2, [packed['data_samples']]
    model = build(teacher_cache={'folder': str(tmp_path)})
    assert model.teacher is not None  # it has just made the class embeddings
    for share in (0, 1):
        losses = model(inputs, samples, mode='loss')
        assert losses['cached_share'] == share
    expected = build()(inputs, samples, mode='loss')
    assert losses['num_regions'] == expected['num_regions']
    torch.testing.assert_close(losses['confidence'], expected['confidence'], rtol=1e-4, atol=0)
    assert set(model.state_dict()) == set(build().state_dict())


def test_ready_text_embeddings_leave_the_teacher_where_it_is(build, embedding_files, tmp_path):
    model = build(text_embeddings=embedding_files, teacher_cache={'folder': str(tmp_path / 'cache')})
    assert model.teacher is None
    np.testing.assert_array_equal(model.teacher_text.numpy(), np.load(embedding_files['teacher']))


def test_mistyped_option_of_the_teacher_cache_is_named(build):
    with pytest.raises(TypeError, match='foldre'):
        build(teacher_cache={'foldre': 'x'})


@pytest.mark.parametrize('part', ['student', 'teacher', 'loss'])
def test_mistyped_keys_are_named(build, part):
    with pytest.raises(TypeError, match='chekpoint'):
        build(**{part: {'chekpoint': 'x.pt'}})


def test_mistyped_top_level_key_is_named(build):
    with pytest.raises(TypeError, match='vocabularies'):
        build(vocabularies=VOCABULARY)


def test_trainable_blocks_are_asked_for(build, checkpoints):
    with pytest.raises(ValueError, match='trainable blocks must be in 0..2, got 3'):
        build(student={'trainable_blocks': 3})
    with pytest.raises(ValueError, match='student.trainable_blocks is missing'):
        DenseVLM(student=checkpoints['student'], teacher=checkpoints['teacher'], vocabulary=VOCABULARY, loss={})


@pytest.mark.parametrize('who', ['student', 'teacher'])
def test_checkpoints_that_cannot_be_used(build, checkpoints, who, tmp_path):
    other = 'teacher' if who == 'student' else 'student'
    with pytest.raises(ValueError, match='does not fit this architecture(.|\n)*of another shape'):
        build(**{who: {'checkpoint': checkpoints[other]['checkpoint']}})
    with pytest.raises(FileNotFoundError, match='gone.pt'):
        build(**{who: {'checkpoint': str(tmp_path / 'gone.pt')}})
    (tmp_path / 'cut.pt').write_bytes(Path(checkpoints[who]['checkpoint']).read_bytes()[:5000])
    with pytest.raises(ValueError, match='cut.pt is damaged'):
        build(**{who: {'checkpoint': str(tmp_path / 'cut.pt')}})


class Payload:
    """Unpickling it would touch a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize('save', [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
def test_checkpoint_that_holds_code_is_refused_unread(build, save, tmp_path):
    save({'state_dict': Payload(tmp_path / 'touched')}, tmp_path / 'code.pt')
    with pytest.raises(ValueError, match='code.pt is refused'):
        build(student={'checkpoint': str(tmp_path / 'code.pt')})
    assert not (tmp_path / 'touched').exists()
