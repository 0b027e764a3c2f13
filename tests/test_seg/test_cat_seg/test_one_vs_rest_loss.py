"""The loss against PyTorch's on explicit targets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from densevlm_mm.seg.cat_seg.one_vs_rest_loss import check_labels, one_vs_rest_loss


@pytest.mark.parametrize('ignored', ['negative', 'skip'])
@pytest.mark.parametrize(('classes', 'ignore_index'), [(3, 255), (300, 65535), (1, 255)])
def test_it_is_binary_cross_entropy_with_one_hot_targets(ignored, classes, ignore_index):
    logits = (5 * torch.randn(2, classes, 4, 6)).requires_grad_()
    labels = torch.randint(classes, (2, 4, 6))
    labels[0, 0, 0] = classes - 1  # 299 is beyond a byte
    labels[1, :2] = ignore_index
    known = labels != ignore_index
    targets = F.one_hot(labels.where(known, 0), classes).movedim(-1, 1) * known[:, None]
    weights = known[:, None].float() if ignored == 'skip' else torch.ones(1)
    expected = F.binary_cross_entropy_with_logits(logits, targets.float(), weights)
    loss = one_vs_rest_loss(logits, labels, ignore_index=ignore_index, ignored=ignored)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_labels_are_checked():
    labels = torch.tensor([0, 299, 65535])
    check_labels(labels, 300, 65535)
    with pytest.raises(ValueError, match='label 299'):
        check_labels(labels, 299, 65535)
    with pytest.raises(ValueError, match='ignore_index 255 is also'):
        check_labels(labels, 300, 255)
    with pytest.raises(ValueError, match='label -1'):
        check_labels(torch.tensor([-1]), 3, 255)
