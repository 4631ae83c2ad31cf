"The loss of a model with all its parts: which label is void, and what a mean is over."

import pytest
import torch
from torch.nn import functional as F

from ctxseg_nb.core import IGNORE
from ctxseg_nb.crf.guided import GuidanceCRF
from ctxseg_nb.models.class_guidance import CRFWrapper
from ctxseg_nb.models.segmentor import MODELS, create_model
from ctxseg_nb.training.losses import SegmentationLoss, pixel_cross_entropy

MODELS = sorted(MODELS)
K = 4


def model_of(name):
    "A model with an auxiliary head, by name; 'piecewise' is `guided` with a field on top, learnt by pieces"
    if name != 'piecewise':
        return create_model(name, K, aux=True)
    return CRFWrapper(create_model('guided', K), GuidanceCRF(2), 'piecewise')


def masks(void):
    """Masks with classes 1..K-1 and void pixels, called `void`: a frame, and what would be the sole pixels of class
    1 of the first picture"""
    target = torch.randint(2, K, (2, 40, 40), generator=torch.Generator().manual_seed(0))
    target[1, :20] = 1
    target[:, :6] = void
    target[0, 20:30, 5:15] = void
    return target


def values(name, target, ignore_index):
    torch.manual_seed(0)
    model = model_of(name).train()
    loss_func = SegmentationLoss(model, ignore_index=ignore_index)
    out = model(torch.randn(2, 3, 40, 40))
    torch.manual_seed(1)  # the deep CRF draws its pairs
    loss = loss_func(out, target)
    return loss.detach(), loss_func.values


@pytest.mark.parametrize('ignore_index', [0, -1, 200])
@pytest.mark.parametrize('name', [*MODELS, 'piecewise'])
def test_another_label_for_void_changes_no_part(name, ignore_index):
    expected, parts = values(name, masks(IGNORE), IGNORE)
    found, others = values(name, masks(ignore_index), ignore_index)
    assert parts.keys() == others.keys()
    for part in parts:
        torch.testing.assert_close(others[part], parts[part], msg=lambda m: f'{part}: {m}')
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('name', [*MODELS, 'piecewise'])
def test_no_part_asks_void_pixels(name):
    """Void in place of labels changes every part that looks at labels: none of them takes void for a class, none
    looks at all"""
    labels = masks(IGNORE)
    labels[:, :6] = 1
    _, with_labels = values(name, labels, IGNORE)
    _, with_void = values(name, masks(IGNORE), IGNORE)
    for part in with_void:
        if part not in ('rcl', 'drift'):
            assert with_void[part] != with_labels[part], part
        assert with_void[part].isfinite()


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('ignore_index', [IGNORE, 0, -1])
def test_one_mean_for_each_image(weighted, ignore_index):
    """reduction='none': each picture by its own labelled pixels (or their weights), not by those of the batch; 0 for
    a picture of void"""
    logits, target = torch.randn(4, K, 6, 7), torch.randint(1, K, (4, 6, 7))
    target[1, :5], target[2, 2:4], target[3] = ignore_index, ignore_index, ignore_index
    weight = torch.rand(K) + 0.1 if weighted else None
    loss_func = SegmentationLoss(weight=weight, ignore_index=ignore_index)
    loss_func.reduction = 'none'
    found = loss_func(logits, target)
    assert found.shape == (4,) and found[3] == 0
    for i in range(3):
        alone = F.cross_entropy(logits[i : i + 1], target[i : i + 1], weight=weight, ignore_index=ignore_index)
        torch.testing.assert_close(found[i], alone)
    mean = pixel_cross_entropy(logits, target, weight, ignore_index)
    torch.testing.assert_close(mean, F.cross_entropy(logits, target, weight=weight, ignore_index=ignore_index))
    assert (mean - found[:3].mean()).abs() > 1e-3


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_sums_over_pixels_are_not_in_half_precision(dtype):
    logits, target = torch.randn(1, K, 300, 300).to(dtype), torch.randint(K, (1, 300, 300))
    loss = pixel_cross_entropy(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), target))


@pytest.mark.parametrize('name', MODELS)
def test_parts_are_float32_and_finite_under_autocast(name):
    model = create_model(name, K, aux=True).train()
    loss_func = SegmentationLoss(model)
    with torch.autocast('cpu', torch.bfloat16):
        loss = loss_func(model(30 * torch.randn(2, 3, 40, 40)), masks(IGNORE))
    loss.backward()
    assert loss.isfinite() and all(v.dtype == torch.float32 and v.isfinite() for v in loss_func.values.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize('name', MODELS)
def test_parts_by_the_word(name):
    """The parts over all pixels and over all classes, beside PyTorch's mean over pixels that are not void, and a
    loop over pictures"""
    torch.manual_seed(0)
    model = create_model(name, K, aux=True).train()
    loss_func, target = SegmentationLoss(model, ignore_index=0), masks(0)
    out = model(torch.randn(2, 3, 40, 40))
    loss_func(out, target)
    for part in {'aux', 'regions', 'rough'} & loss_func.values.keys():
        logits = F.interpolate(out[part], (40, 40), mode='bilinear', align_corners=False)
        torch.testing.assert_close(loss_func.values[part], F.cross_entropy(logits, target, ignore_index=0).detach())
    there = torch.tensor([[float(k > 0 and (y == k).any()) for k in range(K)] for y in target])
    for part, key in {'se': 'class_logits', 'se3': 'class_logits3'}.items():
        if part in loss_func.values:
            torch.testing.assert_close(
                loss_func.values[part], F.binary_cross_entropy_with_logits(out[key], there).detach()
            )
