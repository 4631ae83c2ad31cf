"The three CRFs against loops over nodes, pixels and labels: every sign, index and norm counts."

import math
from itertools import product

import pytest
import torch

from ctxseg_nb.crf.dense import DenseCRF, ExactGaussian, LatticeGaussian
from ctxseg_nb.crf.graph import exact_crf, mean_field, piecewise_nll, range_box_edges
from ctxseg_nb.crf.guided import COMPATIBILITY_FORMS, GuidanceCRF, GuidedKernel, fit_guidance_crf

F8 = torch.float64
H, W, K = 3, 4, 3
N = H * W


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=F8, generator=torch.Generator().manual_seed(seed))


def as_rows(x):
    return x.flatten(1).T  # (K, H, W) → (N, K)


# ---- on a graph


def graph():
    edges = [range_box_edges(H, W, relation, 1.2)[0] for relation in ('surrounding', 'above')]
    return random(N, K), [random(e.shape[1], K, K, seed=i + 1) for i, e in enumerate(edges)], edges


@pytest.mark.parametrize('computed', [False, True])
@pytest.mark.parametrize('n_iters, damping', [(0, 0.0), (1, 0.0), (3, 0.0), (4, 0.3)])
def test_mean_field_on_a_graph(n_iters, damping, computed):
    z, tables, edges = graph()
    s = z
    for _ in range(n_iters):
        Q, new = s.softmax(1), z.clone()
        for table, e in zip(tables, edges):
            for w, (p, q) in zip(table, e.T.tolist()):
                for k, l in product(range(K), repeat=2):
                    new[p, k] += w[k, l] * Q[q, l]
                    new[q, l] += w[k, l] * Q[p, k]
        s = damping * s + (1 - damping) * new
    scores = [t.__getitem__ for t in tables] if computed else tables
    close(mean_field(z, scores, edges, n_iters, damping), s.log_softmax(1))


def test_piecewise_likelihood_and_enumeration():
    z, tables, edges = graph()
    labels = torch.arange(N) % K
    labels[4] = 255
    nodes = [-z[p].log_softmax(0)[y] for p, y in enumerate(labels) if y != 255]
    expected = sum(nodes) / len(nodes)
    for table, e in zip(tables, edges):
        pairs = [
            (w.flatten().logsumexp(0) - w[labels[p], labels[q]])
            for w, (p, q) in zip(table, e.T)
            if 255 not in (labels[p], labels[q])
        ]
        expected = expected + sum(pairs) / len(pairs)
    close(piecewise_nll(z, tables, labels, edges), expected)
    few, table, e = z[:4], tables[0][:3], torch.tensor([[0, 1, 2], [1, 3, 0]])
    scores = {
        y: sum(few[p, k] for p, k in enumerate(y)) + sum(w[y[p], y[q]] for w, (p, q) in zip(table, e.T.tolist()))
        for y in product(range(K), repeat=4)
    }
    log_Z = torch.stack(list(scores.values())).logsumexp(0)
    marginals = torch.zeros(4, K, dtype=F8)
    for y, s in scores.items():
        marginals[range(4), y] += (s - log_Z).exp()
    found = exact_crf(few, table, e)
    close(found[0], log_Z)
    close(found[1], marginals)
    assert tuple(found[2].tolist()) == max(scores, key=scores.get)


# ---- dense


def gaussian(image, space, colour=None):
    "The kernel (N, N) without its diagonal, entry by entry"
    places = list(product(range(H), range(W)))
    table = torch.zeros(N, N, dtype=F8)
    for (i, (y, x)), (j, (v, u)) in product(enumerate(places), repeat=2):
        d = ((y - v) ** 2 + (x - u) ** 2) / space**2
        if colour:
            d = d + (image[:, y, x] - image[:, v, u]).square().sum().item() / colour**2
        if i != j:
            table[i, j] = math.exp(-d / 2)
    return table


@pytest.mark.parametrize('normalisation', ['symmetric', 'none'])
@pytest.mark.parametrize('potts', [True, False])
def test_dense_crf(potts, normalisation):
    z, image = random(2, K, H, W), 255 * torch.rand(2, 3, H, W, dtype=F8, generator=torch.Generator().manual_seed(1))
    penalty = 1 - torch.eye(K, dtype=F8) if potts else random(K, K, seed=2)
    expected = []
    for z_i, x in zip(z, image):
        tables = gaussian(x, 3.0, 80.0), gaussian(x, 1.0)
        if normalisation == 'symmetric':
            tables = [t / (t.sum(1)[:, None] * t.sum(1)).sqrt() for t in tables]
        log_Q = as_rows(z_i).log_softmax(1)
        for _ in range(3):
            cost = sum(w * t @ log_Q.exp() for w, t in zip((0.7, 0.4), tables)) @ penalty.T
            log_Q = (as_rows(z_i) - cost).log_softmax(1)
        expected.append(log_Q.T.unflatten(1, (H, W)))
    options = dict(n_iters=3, normalisation=normalisation, compatibility=None if potts else penalty)
    close(DenseCRF(3.0, 80.0, 1.0, 0.7, 0.4, method='exact', **options)(z, image), torch.stack(expected))
    fast = DenseCRF(3.0, 80.0, 1.0, 0.7, 0.4, **options)(z, image)
    assert (fast.exp() - torch.stack(expected).exp()).abs().mean() < 0.1  # as far as the lattice is a Gaussian


def test_rows_of_an_exact_kernel():
    f = random(20, 5)
    kernel = ExactGaussian(f)
    close(kernel.rows(7, 12), kernel.rows(0, 20)[7:12])
    close(kernel.rows(0, 20).diagonal(), torch.zeros(20, dtype=F8))


def test_lattice_has_no_self_term_and_is_symmetric():
    f = 2 * random(60, 5)
    table = LatticeGaussian(f)(torch.eye(60, dtype=F8))
    close(table.diagonal(), torch.zeros(60, dtype=F8))
    close(table, table.T)
    assert table.min() > -1e-9


# ---- guided


def guided_kernel(image, radius, eps):
    "Shen & Zeng 2019, eq. 5, window by window: (N, N)"
    pixels, colours = torch.arange(N).view(H, W), image.flatten(1)
    table, n = torch.zeros(N, N, dtype=F8), torch.zeros(N, dtype=F8)
    for k, (y, x) in enumerate(product(range(H), range(W))):
        j = pixels[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1].flatten()
        d = colours[:, j] - colours[:, j].mean(1, keepdim=True)
        inverse = torch.linalg.inv(d @ d.T / len(j) + eps * torch.eye(3, dtype=F8))
        table[j[:, None], j] += (1 + d.T @ inverse @ d) / len(j)
        n[k] = len(j)
    return table / n[:, None]


def penalty_of(g, lam, form):
    C = torch.zeros(K, K, dtype=F8)
    for l, m in product(range(K), repeat=2):
        if form == 'additive':
            C[l, m] = int(l != m) - lam * (g[l] + g[m])
        elif l != m:
            C[l, m] = 1 - lam * (g[l].sigmoid() + g[m].sigmoid())
    return C


MEAN, STD = (torch.tensor(s, dtype=F8)[:, None, None] for s in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
GUIDES = 255 * torch.rand(2, 3, H, W, dtype=F8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize('radius', [1, 20])
def test_guided_kernel(radius):
    kernel, v = GuidedKernel(GUIDES, radius, 10.0), random(2, K, H, W)
    tables = torch.stack([guided_kernel(x, radius, 10.0) for x in GUIDES])
    close(kernel(v).flatten(2), v.flatten(2) @ tables.mT)
    close(kernel.self_term.flatten(1), tables.diagonal(dim1=1, dim2=2))
    close(kernel.others(v).flatten(2), v.flatten(2) @ (tables - torch.diag_embed(tables.diagonal(dim1=1, dim2=2))).mT)


@pytest.mark.parametrize('form', COMPATIBILITY_FORMS)
def test_guidance_crf(form):
    z, g = random(2, K, H, W), random(2, K, seed=4)
    x, labels = (GUIDES / 255 - MEAN) / STD, torch.arange(2 * N).view(2, H, W) % K
    labels[0, 1] = 255
    crf, expected, nll = GuidanceCRF(1, 10.0, 3, 2.5, 0.2, form).double(), [], []
    w, lam = crf.w.item(), crf.lam.item()
    for z_i, g_i, guide, y in zip(z, g, GUIDES, labels.flatten(1).tolist()):
        C, others = penalty_of(g_i, lam, form), guided_kernel(guide, 1, 10.0)
        others.fill_diagonal_(0)
        Q = as_rows(z_i).softmax(1)
        for _ in range(3):
            Q = (as_rows(z_i) - w * others @ Q @ C.T).softmax(1)
        expected.append(Q.log().T.unflatten(1, (H, W)))
        for i in range(N):
            cost = sum(others[i, j] * C[:, y[j]] for j in range(N) if y[j] != 255)
            if y[i] != 255:
                nll.append(-(as_rows(z_i)[i] - w * cost).log_softmax(0)[y[i]])
    close(crf(z, x, g), torch.stack(expected).detach())
    close(crf.piecewise_loss(z, x, labels, g).detach(), sum(nll) / len(nll))
    losses = fit_guidance_crf(crf, [(z, x, labels, g)], max_steps=3)
    close(torch.tensor(losses[0], dtype=F8), sum(nll) / len(nll))
    assert min(losses) < losses[0]


def test_guidance_crf_without_class_logits_is_potts():
    z, x = random(2, K, H, W), (GUIDES / 255 - MEAN) / STD
    for form in COMPATIBILITY_FORMS:
        crf = GuidanceCRF(1, 10.0, 3, 2.5, 0.2, form).double()
        none = GuidanceCRF(1, 10.0, 3, 2.5, 0.0, form).double()
        close(crf(z, x), none(z, x, random(2, K, seed=4)))
