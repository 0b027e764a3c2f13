"""The decoupled loss against the reference's numbers, a plain formula in float64, and what its options promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from densevlm_mm.models import DecoupledAlignmentLoss
from densevlm_mm.registry import MODELS

PARITY = Path(__file__).parents[1] / 'data' / 'parity'
THINGS, CLASSES = 4, 7


def load(name: str) -> dict[str, Tensor]:
    with np.load(PARITY / name) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def total(losses: dict[str, Tensor]) -> Tensor:
    return losses['loss_thing'] + losses['loss_stuff']


def assert_gradient(found: Tensor, expected: Tensor) -> None:
    """Equal up to fp32 rounding, measured by the largest entry."""
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5 * float(expected.abs().max()))


def regions(rows: int, seed: int = 0, noise: float = 0.05) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student and teacher features and texts; the teacher's point at one class each, in turn."""
    generator = torch.Generator().manual_seed(seed)
    student_text, teacher_text = (torch.randn(CLASSES, c, generator=generator) for c in (5, 6))
    student = torch.randn(rows, 5, generator=generator)
    teacher = teacher_text[torch.arange(rows) % CLASSES] + noise * torch.randn(rows, 6, generator=generator)
    return student, teacher, F.normalize(student_text, dim=-1), F.normalize(teacher_text, dim=-1)


def plain_formula(
    student: Tensor,
    teacher: Tensor,
    student_text: Tensor,
    teacher_text: Tensor,
    *,
    scale: float,
    score_thr: float = 0.3,
    stuff_classes: str = 'all',
    thing_classes: str = 'thing',
    mean: str = 'per_group',
) -> dict[str, float]:
    """Row by row, in float64."""
    sums, rows = {'thing': 0.0, 'stuff': 0.0}, {'thing': 0, 'stuff': 0}
    for s, t in zip(student.double(), teacher.double(), strict=True):
        teacher_logits = scale * (teacher_text.double() @ t) / t.norm()
        student_logits = scale * (student_text.double() @ s) / s.norm()
        probability, label = teacher_logits.softmax(0).max(0)
        if probability <= score_thr:
            continue
        kind = 'thing' if label < THINGS else 'stuff'
        matched = thing_classes if kind == 'thing' else stuff_classes
        classes = {'all': range(CLASSES), 'thing': range(THINGS), 'stuff': range(THINGS, CLASSES)}[matched]
        p, q = (logits[list(classes)].softmax(0) for logits in (teacher_logits, student_logits))
        sums[kind] += float((p * (p / q).log()).sum())
        rows[kind] += 1
    if mean == 'joint':
        rows = dict.fromkeys(rows, sum(rows.values()))
    return {f'loss_{kind}': sums[kind] / max(rows[kind], 1) for kind in sums}


@pytest.mark.parity
@pytest.mark.parametrize('case', ['mixed', 'thing', 'stuff', 'edge'])
def test_reference_value_and_gradient(case):
    values = {key.partition('/')[2]: value for key, value in load('decoupled_loss.npz').items() if key.startswith(case)}
    student = values['student_features'].requires_grad_()
    num_things = int(values['num_things']) - 1  # the split that the released code makes of its list
    losses = DecoupledAlignmentLoss(num_things)(
        student, values['teacher_features'], values['student_text'], values['teacher_text']
    )
    total(losses).backward()
    assert total(losses).item() == pytest.approx(values['loss'].item(), rel=1e-5)
    assert_gradient(student.grad, values['student_grad'])
    probability, label = values['retrieved_prob'], values['retrieved_label']
    kept = probability > 0.3
    assert losses['num_regions'] == len(probability)
    assert losses['num_kept'] == kept.sum()
    assert losses['num_thing'] == (kept & (label < num_things)).sum()
    assert losses['confidence'].item() == pytest.approx(probability.mean().item(), rel=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize('case', ['mixed', 'all_stuff', 'all_thing', 'none_valid'])
def test_reference_value_and_gradient_of_older_torch(case):
    values = load('densevlm_loss.npz')
    student = values[f'{case}_student'].requires_grad_()
    losses = DecoupledAlignmentLoss(int(values['thing_threshold']))(
        student, values[f'{case}_teacher'], values['U'], values['P']
    )
    total(losses).backward()
    # without a row that passes the threshold, the reference's loss is NaN; its gradient is zero, as here
    expected = 0.0 if case == 'none_valid' else values[f'{case}_loss'].item()
    assert total(losses).item() == pytest.approx(expected, rel=1e-5)
    assert_gradient(student.grad, values[f'{case}_grad'])


@pytest.mark.parametrize('stuff_classes', ['all', 'stuff'])
@pytest.mark.parametrize('thing_classes', ['thing', 'all'])
@pytest.mark.parametrize('mean', ['per_group', 'joint'])
def test_every_variant_is_its_plain_formula(stuff_classes, thing_classes, mean):
    options = {'stuff_classes': stuff_classes, 'thing_classes': thing_classes, 'mean': mean}
    batch = regions(30, noise=1.2)
    losses = DecoupledAlignmentLoss(THINGS, logit_scale=4.0, **options)(*batch)
    expected = plain_formula(*batch, scale=4.0, **options)
    assert 0 < losses['num_thing'] < losses['num_kept'] < 30
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5)


def test_variants_differ():
    batch = regions(30, noise=1.2)
    options = [{}, {'stuff_classes': 'stuff'}, {'thing_classes': 'all'}, {'thing_classes': 'all', 'mean': 'joint'}]
    values = {total(DecoupledAlignmentLoss(THINGS, logit_scale=4.0, **o)(*batch)).item() for o in options}
    assert len(values) == len(options)


def class_gradients(name: str, **options) -> tuple[Tensor, Tensor]:
    """Gradients that one term sends to the student's embeddings of things and of stuff."""
    student, teacher, student_text, teacher_text = regions(14)
    student_text.requires_grad_()
    DecoupledAlignmentLoss(THINGS, **options)(student, teacher, student_text, teacher_text)[name].backward()
    return student_text.grad[:THINGS], student_text.grad[THINGS:]


def test_things_exert_exactly_no_pull_on_stuff():
    things, stuff = class_gradients('loss_thing')
    assert things.any() and not stuff.any()
    things, stuff = class_gradients('loss_thing', thing_classes='all')
    assert things.any() and stuff.any()


def test_stuff_is_aligned_over_all_classes_or_block_diagonal():
    things, stuff = class_gradients('loss_stuff')
    assert things.any() and stuff.any()
    things, stuff = class_gradients('loss_stuff', stuff_classes='stuff')
    assert stuff.any() and not things.any()


def test_no_gradient_reaches_the_teacher():
    batch = [tensor.requires_grad_() for tensor in regions(14)]
    total(DecoupledAlignmentLoss(THINGS)(*batch)).backward()
    assert [tensor.grad is not None for tensor in batch] == [True, False, True, False]


def test_weights_scale_the_terms():
    batch = regions(14)
    plain = DecoupledAlignmentLoss(THINGS)(*batch)
    weighted = DecoupledAlignmentLoss(THINGS, thing_weight=2.0, stuff_weight=0.5)(*batch)
    assert weighted['loss_thing'] == 2 * plain['loss_thing']
    assert weighted['loss_stuff'] == plain['loss_stuff'] / 2


@settings(max_examples=20)
@given(rows=st.integers(1, 12), seed=st.integers(0, 1000), factor=st.floats(0.1, 10))
def test_student_that_agrees_has_no_loss_and_features_no_length(rows, seed, factor):
    _, teacher, _, text = regions(rows, seed)
    losses = DecoupledAlignmentLoss(THINGS)(factor * teacher, teacher, text, text)
    assert total(losses).item() == pytest.approx(0, abs=1e-3)


@settings(max_examples=30)
@given(valid=st.lists(st.booleans(), min_size=1, max_size=12), seed=st.integers(0, 1000))
def test_masked_rows_are_as_good_as_absent(valid, seed):
    valid = torch.tensor(valid)
    student, teacher, *texts = regions(len(valid), seed, noise=1.2)
    loss = DecoupledAlignmentLoss(THINGS, logit_scale=4.0)
    masked, dropped = student.clone().requires_grad_(), student[valid].requires_grad_()
    with_mask = loss(masked, teacher, *texts, valid)
    without = loss(dropped, teacher[valid], *texts)
    total(with_mask).backward()
    total(without).backward()
    for name, value in without.items():
        torch.testing.assert_close(with_mask[name], value, msg=name)
    torch.testing.assert_close(masked.grad[valid], dropped.grad)
    assert not masked.grad[~valid].any()


def test_padding_may_be_zeros():
    student, teacher, *texts = regions(6)
    student[4:], teacher[4:] = 0, 0
    student.requires_grad_()
    losses = DecoupledAlignmentLoss(THINGS)(student, teacher, *texts, torch.arange(6) < 4)
    total(losses).backward()
    assert torch.isfinite(student.grad).all()
    assert losses['num_regions'] == 4


def test_half_precision_autocast_changes_nothing():
    batch = regions(14)
    plain = DecoupledAlignmentLoss(THINGS)(*batch)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        cast = DecoupledAlignmentLoss(THINGS)(*batch)
    assert {value.dtype for value in cast.values()} == {torch.float32}
    assert cast == plain


def test_half_precision_features_are_compared_in_fp32():
    student, teacher, *texts = regions(14)
    exact = DecoupledAlignmentLoss(THINGS)(student.bfloat16().float(), teacher.bfloat16().float(), *texts)
    assert DecoupledAlignmentLoss(THINGS)(student.bfloat16(), teacher.bfloat16(), *texts) == exact


def test_registered():
    loss = MODELS.build({'type': 'densevlm_mm.DecoupledAlignmentLoss', 'num_things': 3})
    assert isinstance(loss, DecoupledAlignmentLoss)
    assert not list(loss.parameters()) and not loss.state_dict()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'stuff_classes': 'al'}, "stuff_classes must be one of .* got 'al'"),
        ({'thing_classes': 'stuff'}, "thing_classes must be one of .* got 'stuff'"),
        ({'mean': 'sum'}, "mean must be one of .* got 'sum'"),
        ({'num_things': 0}, 'num_things must be at least 1'),
        ({'score_thr': 1.0}, 'nothing is kept'),
        ({'score_thr': -0.1}, r'score_thr must be in \[0, 1\)'),
    ],
)
def test_options_outside_their_range(options, message):
    with pytest.raises(ValueError, match=message):
        DecoupledAlignmentLoss(**{'num_things': 3, **options})


def test_threshold_is_checked_when_it_changes():
    loss = DecoupledAlignmentLoss(3)
    with pytest.raises(ValueError, match='score_thr'):
        loss.score_thr = 1.5
    assert loss.score_thr == 0.3


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda b: b.update(student=b['student'][:, 1:]), 'student features are 4 wide but its class embeddings 5'),
        (lambda b: b.update(teacher=b['teacher'][:, 1:]), 'teacher features are 5 wide but its class embeddings 6'),
        (lambda b: b.update(teacher=b['teacher'][1:]), '14 student and 13 teacher regions'),
        (lambda b: b.update(teacher_text=b['teacher_text'][1:]), '7 student and 6 teacher classes'),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    batch = dict(zip(('student', 'teacher', 'student_text', 'teacher_text'), regions(14), strict=True))
    change(batch)
    with pytest.raises(ValueError, match=message):
        DecoupledAlignmentLoss(THINGS)(*batch.values())


def test_vocabulary_without_stuff():
    with pytest.raises(ValueError, match='none is left for stuff'):
        DecoupledAlignmentLoss(CLASSES)(*regions(14))


RANK = """
import sys
import torch
import torch.distributed as dist
_, tests, store, rank = sys.argv
sys.path.insert(0, tests)
from test_decoupled_alignment import THINGS, gradient, regions, split_batches
whole = [gradient(batch, mean) for batch, _ in split_batches() for mean in ('per_group', 'joint')]
dist.init_process_group('gloo', init_method=f'file://{store}/store', rank=int(rank), world_size=2)
parts = [gradient(ranks[int(rank)], mean) for _, ranks in split_batches() for mean in ('per_group', 'joint')]
for expected, part in zip(whole, parts):
    dist.all_reduce(part)
    torch.testing.assert_close(part / 2, expected, rtol=1e-5, atol=1e-7)
dist.destroy_process_group()
"""


def gradient(batch: tuple[Tensor, ...], mean: str) -> Tensor:
    """Gradient for a weight that all rows share."""
    student, teacher, *texts = batch
    weight = torch.eye(5, requires_grad=True)
    total(DecoupledAlignmentLoss(THINGS, mean=mean)(student @ weight, teacher, *texts)).backward()
    return weight.grad


def split_batches() -> list:
    """Batches with their rows on each of two ranks.

    Rank 0 has other counts than rank 1; no thing at all; no row that passes the threshold; nor has either rank.
    """
    student, teacher, *texts = regions(14)
    label = torch.arange(14) % CLASSES
    nowhere = torch.zeros_like(teacher)  # all classes are equally probable
    halves = torch.arange(14) < 7
    blank = torch.where(halves[:, None], nowhere, teacher)
    cases = [(teacher, torch.arange(14) < 5), (teacher, label >= THINGS), (blank, halves), (nowhere, halves)]
    return [
        ((student, t, *texts), [(student[rows], t[rows], *texts) for rows in (on_first, ~on_first)])
        for t, on_first in cases
    ]


def test_gradient_averaged_over_processes_is_that_of_the_whole_batch(tmp_path):
    command = [sys.executable, '-c', RANK, str(Path(__file__).parent), str(tmp_path)]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path), 'OMP_NUM_THREADS': '1'}
    ranks = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
