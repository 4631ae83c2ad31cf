"""Numbers stay right at the edges: probabilities of 0, features far from the origin, large pictures, void only, many
classes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ctxseg_nb.core import IGNORE, DatasetInfo, can_check_values, check_labels, finite_scores
from ctxseg_nb.crf import guided
from ctxseg_nb.crf.dense import DenseCRF
from ctxseg_nb.crf.graph import exact_crf, mean_field, pair_nll, piecewise_nll, range_box_edges
from ctxseg_nb.crf.guided import GuidanceCRF, GuidedKernel, guided_filter
from ctxseg_nb.evaluation.metrics import confusion_matrix
from ctxseg_nb.evaluation.sliding_window import Predictor
from ctxseg_nb.models.class_guidance import keep_classes
from ctxseg_nb.models.encnet import SELoss, assign, encode, presence_target
from ctxseg_nb.models.refinement import refinement_net
from ctxseg_nb.models.segmentor import MODELS, aux_loss, create_model, fcn
from ctxseg_nb.training.losses import SegmentationLoss, count_labels, pixel_cross_entropy

MODELS = sorted(MODELS)
K, H, W = 4, 9, 11
EDGES = range_box_edges(H, W)[0]
PAIRS = torch.randn(EDGES.shape[1], K, K, generator=torch.Generator().manual_seed(0))


def on_graph(unary, colours):
    labels = [mean_field(z.flatten(1).T, PAIRS.to(z), EDGES).T.unflatten(1, z.shape[1:]) for z in unary]
    return torch.stack(labels)


# name → scores (B, K, H, W) and colours (B, 3, H, W) in 0..1 → log-marginals (B, K, H, W)
FIELDS = dict(
    dense=lambda z, c: DenseCRF(5.0, 20.0, 2.0, 1.0, 1.0)(z, 255 * c),
    dense_exact=lambda z, c: DenseCRF(5.0, 20.0, 2.0, 1.0, 1.0, method='exact')(z, 255 * c),
    dense_compatibility=lambda z, c: DenseCRF(5.0, 20.0, 2.0, 1.0, 1.0, compatibility=1 - torch.eye(K))(z, 255 * c),
    guidance=lambda z, c: GuidanceCRF(2)(z, (c - 0.45) / 0.225),
    graph=on_graph,
    graph_damped=lambda z, c: torch.stack(
        [mean_field(s.flatten(1).T, lambda e: PAIRS[e].to(z), EDGES, damping=0.5).T.unflatten(1, (H, W)) for s in z]
    ),
)


def scores_and_colours():
    return torch.randn(2, K, H, W), torch.rand(2, 3, H, W)


# ---- probabilities of 0


@pytest.mark.parametrize('field', FIELDS)
@pytest.mark.parametrize('where', ['one score', 'one pixel', 'one class'])
def test_a_probability_of_zero_stays_where_it_is(field, where):
    z, colours = scores_and_colours()
    at = {'one score': (0, 1, 3, 3), 'one pixel': (0, slice(None), 3, 3), 'one class': (slice(None), 1)}[where]
    z[at] = -torch.inf
    z.requires_grad_()
    out = FIELDS[field](z, colours)
    assert out.isfinite().all()
    p = out.exp()
    torch.testing.assert_close(p.sum(1), torch.ones(2, H, W))
    if where != 'one pixel':
        assert (p[at] == 0).all()
    out.max(1)[0].sum().backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize('field', FIELDS)
@pytest.mark.parametrize('value', [torch.inf, torch.nan])
def test_scores_that_mean_nothing_are_refused(field, value):
    z, colours = scores_and_colours()
    z[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=f'unary.*found {value}'):
        FIELDS[field](z, colours)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ordinary_scores_are_not_touched(dtype):
    z = torch.randn(3, 4).to(dtype)
    assert finite_scores(z) is z
    z[0, 0] = -torch.inf
    assert finite_scores(z).isfinite().all() and finite_scores(z).float().softmax(1)[0, 0] == 0
    assert torch.equal(finite_scores(z)[1:], z[1:])


def test_no_training_step_waits_for_a_device():
    gpu = SimpleNamespace(device=torch.device('cuda'), numel=lambda: 1)
    assert not can_check_values(gpu)
    with torch.no_grad():
        assert can_check_values(gpu)
    assert can_check_values(torch.ones(1)) and not can_check_values(torch.ones(1, device='meta'))
    assert finite_scores(torch.ones(2, device='meta')).shape == (2,)


def test_classes_that_are_struck_out_are_as_if_they_were_not_there():
    z, colours = scores_and_colours()
    there = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 1]])
    for name in ('dense', 'guidance'):
        out = FIELDS[name](keep_classes(z, there), colours)
        for b in range(2):
            left = there[b] == 1
            alone = FIELDS[name](z[b : b + 1, left], colours[b : b + 1])
            torch.testing.assert_close(out[b, left], alone[0], atol=1e-4, rtol=1e-4)
            assert (out[b, ~left].exp() == 0).all()


def test_pairs_that_cannot_be():
    unary, edges = torch.randn(4, 3), torch.tensor([[0, 1, 2], [1, 2, 3]])
    pairs = torch.randn(3, 3, 3)
    pairs[1, 0, 2] = -torch.inf
    for z in (unary, unary.clone().index_fill_(1, torch.tensor([1]), -torch.inf)):
        logZ, marginals, labels = exact_crf(z, pairs, edges)
        assert logZ.isfinite() and marginals.isfinite().all() and (labels[1], labels[2]) != (0, 2)
        for form in (pairs, lambda c: pairs[c]):
            assert mean_field(z, form, edges).isfinite().all()
    labels = torch.tensor([0, 0, 1, 2])
    assert piecewise_nll(unary, pairs, labels, edges).isfinite() and pair_nll(pairs, labels, edges, 3).isfinite()
    for value in (torch.inf, torch.nan):
        pairs[2, 1, 1] = value
        for call in (
            lambda: mean_field(unary, pairs, edges),
            lambda: exact_crf(unary, pairs, edges),
            lambda: pair_nll(pairs, labels, edges, 3),
        ):
            with pytest.raises(ValueError, match=f'pair scores: .* found {value}'):
                call()


@pytest.mark.parametrize('value', [torch.inf, torch.nan])
def test_the_guidance_field_refuses_what_spreads(value):
    z, colours = scores_and_colours()
    x, g = (colours - 0.45) / 0.225, torch.zeros(2, K)
    bad = g.clone()
    bad[0, 1] = value
    with pytest.raises(ValueError, match='class_logits'):
        GuidanceCRF(2, lam=0.1)(z, x, bad)
    with pytest.raises(ValueError, match='guide'):
        guided_filter(colours * value, z, 2, 0.1)
    with pytest.raises(ValueError, match='src'):
        guided_filter(colours, z * value, 2, 0.1)
    target = torch.zeros(2, H, W, dtype=torch.long)
    with pytest.raises(ValueError, match='unary'):
        GuidanceCRF(2).piecewise_loss(z * value, x, target)
    g[0, 1] = -torch.inf
    assert GuidanceCRF(2, lam=0.1)(z, x, g).isfinite().all()


class Struck(torch.nn.Module):
    "A model that rules a class out"

    def forward(self, x):
        return keep_classes(x[:, :1] * torch.ones(1, K, 1, 1), torch.tensor([[1, 0, 1, 1]]).expand(len(x), K))


def test_refinement_learns_on_top_of_struck_classes():
    model = refinement_net(Struck(), fcn(K).backbone, K).train()
    loss = F.cross_entropy(model(torch.randn(2, 3, 32, 32))['logits'], torch.zeros(2, 32, 32, dtype=torch.long))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# ---- far from the origin


@pytest.mark.parametrize('offset', [100, 1000])
def test_encoding_far_from_the_origin(offset):
    x, d, s = torch.randn(2, 16, 60) + offset, torch.randn(8, 16) + offset, torch.rand(8)

    def value_and_gradients(f, dtype):
        inputs = [t.clone().to(dtype).requires_grad_() for t in (x, d, s)]
        y = f(*inputs)
        y.sin().sum().backward()
        return [y.detach().double(), *[t.grad.double() for t in inputs]]

    for f in (assign, encode):
        for fast, exact in zip(value_and_gradients(f, torch.float32), value_and_gradients(f, torch.float64)):
            assert (fast - exact).abs().max() < 1e-4 * exact.abs().max().clamp(min=1)


# ---- large pictures


@pytest.mark.parametrize('radius', [4, 200])  # many windows in a line, and few
def test_guided_filter_of_a_large_picture(radius):
    h, w = 1024, 2048
    colours = torch.where(torch.rand(1, 3, h // 32, w // 32) < 0.5, 60.0, 200.0)
    guide = F.interpolate(colours, (h, w), mode='bilinear')
    maps = F.interpolate(torch.randn(1, 1, 32, 64), (h, w), mode='bilinear').sigmoid()
    with torch.no_grad():
        kernel = GuidedKernel(guide, radius, 0.1)
        assert (kernel(maps) - kernel(maps.double())).abs().max() < 2e-4


@pytest.mark.parametrize('radius', [0, 1, 3, 8, 40, 10**6])
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (7, 1), (8, 13), (40, 29)])
def test_sums_over_windows(radius, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)

    def window(n):
        i = torch.arange(n)
        return ((i[:, None] - i).abs() <= radius).double()

    expected = window(size[0]) @ x @ window(size[1])
    got = guided._box_sum(x, radius)
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad((weight * got).sum(), x)[0], window(size[0]) @ weight @ window(size[1])
    )


def test_the_field_without_float64(monkeypatch):
    z, colours = scores_and_colours()
    x = (colours - 0.45) / 0.225
    expected = GuidanceCRF(2)(z, x)
    monkeypatch.setattr(guided, 'highest_precision', lambda t: t.float())
    crf = GuidanceCRF(2)
    assert not [b for b in crf.buffers() if b.dtype == torch.float64]
    torch.testing.assert_close(crf(z, x), expected, atol=1e-3, rtol=1e-3)


# ---- void only, and small maps


@pytest.mark.parametrize('aux', [False, True])
@pytest.mark.parametrize('name', MODELS)
def test_a_batch_of_void_costs_nothing(name, aux):
    model = create_model(name, K, aux=aux).train()
    loss_func = SegmentationLoss(model)
    loss = loss_func(model(torch.randn(2, 3, 40, 40)), torch.full((2, 40, 40), IGNORE))
    loss.backward()
    assert loss.item() == 0 and all(v == 0 for v in loss_func.values.values())
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


# ---- more classes than 8-bit masks have labels

TOO_MANY = dict(
    info=lambda: DatasetInfo('many', tuple(map(str, range(256)))),
    check_labels=lambda: check_labels(np.zeros(3, int), 256),
    pixel=lambda: pixel_cross_entropy(torch.zeros(1, 256, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)),
    se=lambda: SELoss()({'class_logits': torch.zeros(1, 256)}, torch.zeros(1, 2, 2, dtype=torch.long)),
    presence=lambda: presence_target(torch.zeros(1, 2, 2, dtype=torch.long), 256),
    aux=lambda: aux_loss({'aux': torch.zeros(1, 256, 2, 2)}, torch.zeros(1, 2, 2, dtype=torch.long)),
    count=lambda: count_labels([np.zeros((2, 2), np.uint8)], 256),
    matrix=lambda: confusion_matrix(
        torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(1, 2, 2, dtype=torch.long), 256
    ),
    pairs=lambda: pair_nll(torch.zeros(1, 256, 256), torch.zeros(2, dtype=torch.long), torch.tensor([[0], [1]]), 256),
    guidance=lambda: GuidanceCRF(1).piecewise_loss(
        torch.zeros(1, 256, 2, 2), torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    ),
    labels=lambda: Predictor(lambda x: torch.zeros(len(x), 300, *x.shape[2:])).labels(np.zeros((4, 4, 3), np.uint8)),
) | {f'model {name}': lambda name=name: create_model(name, 256) for name in MODELS}


@pytest.mark.parametrize('what', TOO_MANY)
def test_more_than_255_classes_are_refused(what):
    with pytest.raises(ValueError, match='expected 255 classes at most, found (256|300)'):
        TOO_MANY[what]()


def test_another_label_for_void_allows_more_classes():
    target = torch.tensor([[[255, 299, -1]]])
    logits = torch.randn(1, 300, 1, 3)
    torch.testing.assert_close(
        pixel_cross_entropy(logits, target, ignore_index=-1), F.cross_entropy(logits, target, ignore_index=-1)
    )
    assert confusion_matrix(logits, target, 300, ignore_index=-1).sum() == 2
    assert create_model('fcn', 255).config['n_classes'] == 255
