"Scores at test time: every way to look at a picture, and every figure, on models that are right by construction."

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ctxseg_nb.evaluation.evaluator as evaluation
from ctxseg_nb import cli
from ctxseg_nb.core import IGNORE, IMAGENET_STATS, DatasetInfo, labels_of
from ctxseg_nb.data.dataloaders import dataset_dls, segmentation_dls
from ctxseg_nb.data.dataset import DATASETS, open_dataset
from ctxseg_nb.evaluation.evaluator import evaluate, write_report
from ctxseg_nb.evaluation.metrics import (
    calibration_error,
    class_counts,
    compute_metrics,
    confusion_matrix,
    mean_iou,
    reliability,
)
from ctxseg_nb.evaluation.sliding_window import Predictor, needs_full_windows
from ctxseg_nb.evaluation.tta import tta_predictions
from ctxseg_nb.experiments.recipes import recipe, with_defaults
from ctxseg_nb.experiments.run_recipe import recipe_dls, run_recipe, score
from ctxseg_nb.models.segmentor import MODELS, create_model
from ctxseg_nb.testing.miniatures import make_mask, make_miniature
from ctxseg_nb.training.learner import SegmentationLearner, segmentation_learner
from ctxseg_nb.training.losses import SegmentationLoss

MIRROR = DATASETS['lip'].info.flip_labels
COLOURS = {0: (0, 0), 14: (255, 0), 15: (128, 221)}  # red and green of background, left arm and right arm
COMBINATIONS = 'prob', 'logit', 'avg', 'max', 'avgmax', 'learnt'
LOOKS = dict(
    whole={},
    scales=dict(scales=(0.5, 1.0, 1.5)),
    windows=dict(windows=True, crop=40),
    shorter_side=dict(side=96),
    squeezed=dict(side=(72, 72)),
)


class RightAboutArms(nn.Module):
    """Names each pixel by its red and green. Blue grows to the right in a picture as it was taken; where it falls,
    left is right"""

    def __init__(self):
        super().__init__()
        self.unused, self.seen = nn.Parameter(torch.zeros(())), set()  # a learner expects something to learn

    def forward(self, x):
        self.seen.add(tuple(x.shape[2:]))
        mean, std = (torch.tensor(s, device=x.device).view(3, 1, 1) for s in IMAGENET_STATS)
        rgb = 255 * (x * std + mean)
        logits = torch.full((len(x), 20, *x.shape[2:]), -99.0, device=x.device) + self.unused
        for label, (r, g) in COLOURS.items():
            logits[:, label] = -((rgb[:, 0] - r) ** 2 + (rgb[:, 1] - g) ** 2) / 2000
        turned = rgb[:, 2].diff(dim=-1).sign().sum((1, 2)) < 0
        return torch.where(turned[:, None, None, None], logits[:, list(MIRROR)], logits)


@pytest.fixture(scope='module')
def arms(tmp_path_factory):
    "LIP's miniature, with pictures that `RightAboutArms` understands"
    path = make_miniature('lip', tmp_path_factory.mktemp('data') / 'lip')
    ds = open_dataset('lip', path)
    for i, (image, file) in enumerate(ds.split('train') + ds.split('val')):
        mask = make_mask(list(COLOURS), (64, 48), i)
        picture = np.zeros((64, 48, 3), np.uint8)
        for label, colour in COLOURS.items():
            picture[mask == label, :2] = colour
        picture[..., 2] = 30 + 4 * np.arange(48)
        Image.fromarray(mask).save(file)
        Image.fromarray(picture).save(image, quality=100, subsampling=0)
    return path


def arms_recipe(**options):
    return with_defaults(
        recipe('mcibi/lip/resnet50/fcn', bs=2, **dict(crop=32, scales=(1.0,), mirrors=True, side=None) | options)
    )


@pytest.mark.parametrize('looks', LOOKS)
@pytest.mark.parametrize('combine', COMBINATIONS)
def test_recipes_know_left_from_right(arms, tmp_path, combine, looks):
    r = arms_recipe(combine=combine, **LOOKS[looks])
    metrics, _ = score(r, RightAboutArms(), recipe_dls(r, arms), tmp_path)
    assert (
        metrics['miou'] == 1 if looks in ('whole', 'windows') else metrics['miou'] > 0.85
    )  # scales blur the borders of the classes


@pytest.mark.parametrize('combine', COMBINATIONS)
def test_all_ways_of_combining_see_the_same_windows(arms, tmp_path, combine):
    r, model = arms_recipe(combine=combine, scales=(0.5, 2.0), windows=True, crop=(60, 80), side=40), RightAboutArms()
    score(r, model, recipe_dls(r, arms), tmp_path)
    assert model.seen == {(60, 80)}  # also at scale 0.5, where the picture has 27×20 pixels


def test_recipes_fill_windows_to_the_size_of_training(tmp_path):
    path, seen = make_miniature('pascal_context', tmp_path / 'context'), set()

    def model(x):
        seen.add(tuple(x.shape[2:]))
        return x.mean(1, keepdim=True).expand(-1, 59, -1, -1)

    module = nn.Module()
    module.forward = model
    r = with_defaults(recipe('encnet/pascal_context/resnet101', scales=(0.5, 1.0), mirrors=False, crop=64, bs=2))
    score(r, module, recipe_dls(r, path), tmp_path)
    assert seen == {(64, 64)}  # pictures have 48×64 pixels


def test_models_that_sum_over_positions():
    sums = {name for name in MODELS if needs_full_windows(create_model(name, 5))}
    assert 'encnet' in sums and not sums & {'fcn', 'gap', 'pspnet', 'deeplabv3', 'cfnet', 'mcibi'}
    assert needs_full_windows(create_model('cfnet', 5, encoding=True))


def test_learner_turns_mirrored_predictions_back(arms):
    dls = dataset_dls(open_dataset('lip', arms), (64, 48), bs=2, device='cpu')
    learn = SegmentationLearner(dls, RightAboutArms(), SegmentationLoss())
    with learn.no_bar():
        probabilities, targets = learn.tta()
    assert probabilities.shape == (2, 20, 64, 48) and (probabilities.argmax(1) == targets).all()
    with learn.no_bar():
        scaled, _ = learn.tta(scales=(0.5, 1, 1.5), average='logit')
    assert (scaled.argmax(1) == targets).float().mean() > 0.9
    with learn.no_bar():
        of_training, targets = learn.tta(ds_idx=0)
    assert len(of_training) == 2 and (of_training.argmax(1) == targets).all()
    assert isinstance(learn.model, RightAboutArms)


def test_tta_of_pictures_of_different_sizes_and_without_masks(arms):
    pairs = [(np.full((h, w, 3), 90, np.uint8), make_mask([0, 1], (h, w))) for h, w in ((20, 30), (24, 16))]
    dls = segmentation_dls(pairs, pairs, DatasetInfo('two', ('a', 'b')), bs=1, device='cpu')
    learn = segmentation_learner(dls, 'encnet')
    with learn.no_bar():
        found, targets = learn.tta(scales=(0.5, 1), crop=32)
    assert [tuple(p.shape) for p in found] == [(2, 20, 30), (2, 24, 16)] and [tuple(t.shape) for t in targets] == [
        (20, 30),
        (24, 16),
    ]
    with learn.no_bar():
        assert learn.tta(dl=dls.test_dl([pairs[0][0]], bs=1))[0].shape == (1, 2, 20, 30)


def test_views_together_and_apart_are_the_same():
    net, x = create_model('encnet', 3).eval(), torch.randn(2, 3, 20, 27)
    how = dict(scales=(0.5, 1.3), crop=16, stride=0.5, fill=True, flip_labels=[1, 0, 2], size=18)
    apart, presence = Predictor(net, flip=True, average='logit', **how).predict(x, separate=True)
    together, mean_presence = Predictor(net, flip=True, average='logit', **how).predict(x)
    assert apart.shape == (4, 2, 3, 20, 27) and presence.shape == (4, 2, 3)
    torch.testing.assert_close(apart.mean(0, keepdim=True), together, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(presence.mean(0, keepdim=True), mean_presence)
    torch.testing.assert_close(
        tta_predictions(Predictor(net, flip=True, **how), x)[0], apart.log_softmax(2), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(Predictor(net, flip=True, average='logit', **how)(x), together[0])


# one meaning of miou, on a data set with background

PETS = DatasetInfo('pets', ('background', 'cat', 'dog'), background=0)


def test_miou_means_one_thing(tmp_path):
    rng = np.random.default_rng(0)
    pairs = [
        (rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), rng.integers(0, 3, (24, 32), dtype=np.uint8))
        for _ in range(4)
    ]
    dls = segmentation_dls(pairs, pairs, PETS, bs=1, val_bs=1, device='cpu')
    learn = segmentation_learner(dls, 'fcn')
    with learn.no_bar():
        of_learner = learn.validate()[[m.name for m in learn.metrics].index('miou') + 1]
    counts = evaluate(Predictor(learn.model), pairs, 3)
    batches = evaluate(learn.model, dls.valid, 3)
    r = with_defaults(recipe('encnet/pascal_context/resnet50', windows=False))
    found = dict(
        compute_metrics=compute_metrics(counts, PETS)['miou'],
        mean_iou=mean_iou(counts.sum(0), background=0),
        loader=mean_iou(batches.sum(0), background=0),
        recipe=score(r, learn.model, dls, tmp_path)[0]['miou'],
        report=write_report(counts, PETS, tmp_path)['metrics']['miou'],
    )
    assert found == pytest.approx(dict.fromkeys(found, of_learner), abs=1e-5)
    everything = mean_iou(counts.sum(0))
    assert abs(everything - of_learner) > 1e-3 and compute_metrics(counts, PETS)['miou_with_background'] == everything


# scores that are no numbers


@pytest.mark.parametrize('bad', [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    scores, target = torch.randn(1, 3, 4, 5), torch.zeros(1, 4, 5, dtype=torch.long)
    scores[0, 1, 2, 3] = bad
    for refuses in (
        lambda: confusion_matrix(scores, target, 3),
        lambda: labels_of(scores),
        lambda: reliability(scores.softmax(1), target),
        lambda: Predictor(lambda x: scores)(torch.zeros(3, 4, 5)),
        lambda: Predictor(lambda x: scores, average='logit')(torch.zeros(3, 4, 5)),
        lambda: tta_predictions(Predictor(lambda x: scores), torch.zeros(3, 4, 5)),
        lambda: Predictor(lambda x: scores).labels(np.zeros((4, 5, 3), np.uint8)),
    ):
        with pytest.raises(ValueError, match='expected (finite|probabilities)'):
            refuses()


def test_struck_out_classes_are_allowed():
    scores = torch.randn(1, 3, 4, 5)
    scores[:, 1] = -torch.inf
    target = scores.argmax(1)
    assert confusion_matrix(scores, target, 3).diagonal().sum() == 20
    assert calibration_error(reliability(scores.softmax(1), target)).isfinite()
    assert Predictor(lambda x: scores).labels(np.zeros((4, 5, 3), np.uint8)).tolist() == target[0].tolist()
    with pytest.raises(ValueError, match='found 20 of 20 places'):
        confusion_matrix(torch.full_like(scores, -torch.inf), target, 3)


# hyper-parameters of recipes


@pytest.mark.parametrize('schedule', ['cycle', 'poly'])
@pytest.mark.parametrize('opt', ['sgd', 'adamw'])
def test_recipes_keep_their_momentum(tmp_path, schedule, opt):
    path = make_miniature('ade20k', tmp_path / 'ade20k')
    r = recipe(
        'encnet/ade20k/resnet50',
        backbone='tiny',
        crop=32,
        bs=2,
        epochs=3,
        momentum=0.8,
        schedule=schedule,
        opt=opt,
        scales=(1.0,),
        model_options=dict(width=16),
    )
    learn, _ = run_recipe(r, path, tmp_path / 'run', steps=3)
    recorded = learn.recorder.hps.get('mom', []) + [h['mom'] for h in learn.opt.hypers]
    assert recorded and set(recorded) == {0.8}


# the command line: one way to score whole pictures


def command(*words):
    assert cli.main([str(w) for w in words]) == 0


def camvid(path):
    rng = np.random.default_rng(0)
    for split, n in (('train', 4), ('val', 3)):
        for i in range(n):
            for folder, array in (
                (split, rng.integers(0, 256, (40 + i, 60, 3))),
                (f'{split}annot', rng.integers(0, 12, (40 + i, 60))),
            ):
                (path / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(path / folder / f'{i}.png')
    (path / 'codes.txt').write_text('\n'.join(f'class{k}' for k in range(11)) + '\nvoid\n')
    return path


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A small CamVid, a training on it that saw pictures at 24×36, and the counts it was scored with"
    tmp, seen = tmp_path_factory.mktemp('trained'), []
    whole = evaluation.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, 'evaluate', lambda *args: seen.append(whole(*args)) or seen[-1])
        command(
            'train',
            '--data',
            'camvid',
            '--path',
            camvid(tmp / 'camvid'),
            '--size',
            '24,36',
            '--bs',
            2,
            '--epochs',
            1,
            '--model',
            'encnet',
            '--out',
            tmp / 'run',
            '--device',
            'cpu',
        )
    return tmp, seen[0]


def report(folder):
    return json.loads((folder / 'report.json').read_text())


def test_masks_are_scored_at_their_own_size(trained):
    tmp, counts = trained
    labelled = [(np.array(Image.open(f)) < 11).sum() for f in sorted((tmp / 'camvid' / 'valannot').iterdir())]
    assert counts[:, :, 2].sum(1).tolist() == labelled


def test_training_and_evaluation_give_the_same_number(trained):
    tmp, counts = trained
    of_training = json.loads((tmp / 'run' / 'results.json').read_text())['metrics']
    shutil.copytree(tmp / 'camvid', tmp / 'only_val')
    for split in ('train', 'trainannot'):
        shutil.rmtree(tmp / 'only_val' / split)  # evaluation does not need it
    command(
        'evaluate',
        tmp / 'run' / 'model.safetensors',
        '--data',
        'camvid',
        '--path',
        tmp / 'only_val',
        '--out',
        tmp / 'report',
        '--device',
        'cpu',
    )
    assert report(tmp / 'report')['metrics'] == pytest.approx(of_training, abs=1e-6)


def test_demo_and_evaluation_give_the_same_number(tmp_path):
    command(
        'demo',
        '--out',
        tmp_path / 'demo',
        '--epochs',
        1,
        '--n-train',
        16,
        '--n-valid',
        200,
        '--size',
        32,
        '--device',
        'cpu',
    )
    command('evaluate', tmp_path / 'demo' / 'model.safetensors', '--out', tmp_path / 'report', '--device', 'cpu')
    assert report(tmp_path / 'report')['metrics'] == pytest.approx(
        json.loads((tmp_path / 'demo' / 'results.json').read_text())['metrics'], abs=1e-6
    )


@pytest.mark.parametrize('multiscale', [False, True])
def test_what_the_network_sees(trained, monkeypatch, multiscale):
    "One look at the size of training, or windows of that size, which EncNet needs filled"
    from ctxseg_nb.models.segmentor import Segmentor

    tmp, seen = trained[0], set()
    outputs = Segmentor.outputs
    monkeypatch.setattr(Segmentor, 'outputs', lambda self, x: seen.add(tuple(x.shape[2:])) or outputs(self, x))
    command(
        'evaluate',
        tmp / 'run' / 'model.safetensors',
        '--data',
        'camvid',
        '--path',
        tmp / 'camvid',
        '--device',
        'cpu',
        *['--multiscale'] * multiscale,
    )
    assert seen == {(24, 36)}


def test_predictions_are_what_is_scored(trained):
    tmp, counts = trained
    command(
        'predict',
        tmp / 'camvid' / 'val',
        '--model',
        tmp / 'run' / 'model.safetensors',
        '--out',
        tmp / 'predicted',
        '--device',
        'cpu',
    )
    for i, count in enumerate(counts):
        predicted, mask = (
            torch.as_tensor(np.array(Image.open(f)).astype(int))
            for f in (tmp / 'predicted' / f'{i}.png', tmp / 'camvid' / 'valannot' / f'{i}.png')
        )
        assert (
            class_counts(predicted[None], mask.where(mask < 11, torch.tensor(IGNORE))[None], 11)[0].tolist()
            == count.tolist()
        )


def test_normalisation_of_the_model_file(trained, tmp_path):
    "Another mean and standard deviation in a model's info reach the network"
    from ctxseg_nb.models.segmentor import load_segmentor

    tmp, seen = trained[0], []
    net, info = load_segmentor(tmp / 'run' / 'model')
    net = lambda x: seen.append(x) or torch.zeros(1, 11, *x.shape[2:])
    cli._predictor(net, info | dict(stats=([0.5] * 3, [0.25] * 3)), (8, 8)).labels(np.full((20, 30, 3), 255, np.uint8))
    torch.testing.assert_close(seen[0], torch.full((1, 3, 8, 8), 2.0))
