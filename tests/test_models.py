"Every model of the registry keeps the promises that a user relies on."
import pytest, torch
from torch.nn import functional as F
from ctxseg_nb.core import IGNORE
from ctxseg_nb.models.segmentor import create_model, known_models, load_model, save_model

MODELS = sorted(known_models())
K = 5


def small(name): return create_model(name, K)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('size', [(33, 47), (24, 64)])
def test_odd_sizes(name, size):
    with torch.no_grad(): logits = small(name).eval()(torch.randn(2, 3, *size))
    assert logits.shape == (2, K, *size) and logits.isfinite().all()
