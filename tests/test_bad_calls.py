"Bad calls of the Python API: each raises an error that says what was wrong, and none passes in silence."

import numpy as np
import pytest
import torch

from ctxseg_nb.core import DatasetInfo, default_device
from ctxseg_nb.crf.dense import DenseCRF, boundary_band
from ctxseg_nb.crf.graph import exact_crf, mean_field, range_box_edges
from ctxseg_nb.crf.guided import GuidanceCRF, guided_filter
from ctxseg_nb.data.dataloaders import scenes_dls, segmentation_dls
from ctxseg_nb.data.dataset import as_rgb, check_mask, load_image, load_mask, open_dataset
from ctxseg_nb.data.scenes import ContextScenes
from ctxseg_nb.data.transforms import Augment
from ctxseg_nb.evaluation.evaluator import evaluate, write_submission
from ctxseg_nb.evaluation.export import load_exported
from ctxseg_nb.evaluation.metrics import confusion_matrix, reliability
from ctxseg_nb.evaluation.sliding_window import Predictor
from ctxseg_nb.evaluation.tta import ensemble
from ctxseg_nb.experiments.recipes import recipe
from ctxseg_nb.experiments.runner import run_experiment
from ctxseg_nb.models.encnet import presence_target
from ctxseg_nb.models.feature_memory import FeatureMemory
from ctxseg_nb.models.segmentor import LossTerm, create_model, load_segmentor, save_segmentor
from ctxseg_nb.testing.miniatures import make_miniature
from ctxseg_nb.training.checkpoint import Checkpoint, read_checkpoint
from ctxseg_nb.training.learner import segmentation_learner
from ctxseg_nb.training.losses import SegmentationLoss, count_labels
from ctxseg_nb.training.syncbn import convert_sync_bn

nan, inf = float('nan'), float('inf')
r = torch.randn
K = 5


def labels(*shape):
    return torch.randint(K, shape)


def picture(h=8, w=9):
    return np.zeros((h, w, 3), np.uint8)


def model(name='fcn', **options):
    return create_model(name, K, **options)


def loss(z, y, **options):
    return SegmentationLoss(**options)(z, y)


def dls(**options):
    return segmentation_dls(
        [(picture(), np.arange(72).reshape(8, 9) % K)] * 4,
        [(picture(), np.zeros((8, 9), np.uint8))],
        DatasetInfo('five', tuple('abcde')),
        **{'bs': 2, **options},
    )


def learner(**options):
    return segmentation_learner(dls(), **options)


def field(**options):
    return DenseCRF(
        **{**dict(theta_alpha=8.0, theta_beta=5.0, theta_gamma=3.0, w_bilateral=1.0, w_spatial=1.0), **options}
    )


def ask(image=None, **options):
    return Predictor(model(), **options)(r(3, 16, 16) if image is None else image)


CALLS = {  # what is wrong → call, words of the error
    # models
    'unknown model': (lambda: create_model('fnc', K), 'fcn'),
    'no class': (lambda: create_model('fcn', 0), 'n_classes'),
    'negative classes': (lambda: create_model('fcn', -3), 'n_classes'),
    'classes as a word': (lambda: create_model('fcn', 'five'), 'n_classes'),
    'more classes than a byte': (lambda: create_model('fcn', 256), '255'),
    'unknown backbone': (lambda: model(backbone='resnet5O'), 'resnet'),
    'unknown option': (lambda: model(widht=3), 'widht'),
    'unknown option of the backbone': (lambda: model(backbone_options=dict(depth=3)), 'depth'),
    'width 0': (lambda: model(width=0), 'width'),
    'width -1': (lambda: model(width=-1), 'width'),
    'half a width': (lambda: model(width=2.5), 'width'),
    'dropout 2': (lambda: model(dropout=2.0), 'dropout'),
    'dropout nan': (lambda: model(dropout=nan), 'dropout'),
    'unknown host': (lambda: model('mcibi', host='pspnett'), 'pspnet'),
    'unknown fusion': (lambda: model('mcibi', fuse='sum'), 'concat'),
    'unknown prototypes': (lambda: model('mcibi', prototypes='none'), 'memory'),
    'unknown first value of a memory': (lambda: FeatureMemory(K, 8, 'zeros'), 'random_pixel'),
    'images of one channel': (lambda: model()(r(2, 1, 8, 8)), '(2, 1, 8, 8)'),
    'images of four channels': (lambda: model()(r(2, 4, 8, 8)), '(2, 4, 8, 8)'),
    'one image without a batch': (lambda: model()(r(3, 8, 8)), '(3, 8, 8)'),
    'images of bytes': (lambda: model()(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), 'uint8'),
    'no images': (lambda: Predictor(model()).labels(np.zeros((0, 0, 3), np.uint8)), '(0, 0, 3)'),
    'too few class names': (lambda: save_segmentor(model(), '/tmp/not-written', ['a', 'b']), '5'),
    'model file that is not there': (lambda: load_segmentor('/nowhere/model'), '/nowhere/model'),
    'exported file of an unknown kind': (lambda: load_exported('model.pickle'), '.pickle'),
    'exported program without trust': (lambda: load_exported('model.pt2'), 'model.pt2'),
    # losses
    'target of another size': (lambda: loss(r(2, K, 8, 8), labels(2, 8, 9)), '(2, 8, 9)'),
    'target with a channel': (lambda: loss(r(2, K, 8, 8), labels(2, 1, 8, 8)), '(2, 1, 8, 8)'),
    'target of floats': (lambda: loss(r(2, K, 8, 8), labels(2, 8, 8).float()), 'float32'),
    'label outside': (lambda: loss(r(2, K, 8, 8), labels(2, 8, 8) + K), '0..4'),
    'negative label': (lambda: loss(r(2, K, 8, 8), labels(2, 8, 8) - K), '0..4'),
    'weights of another number': (lambda: loss(r(2, K, 8, 8), labels(2, 8, 8), weight=torch.ones(3)), '(3,)'),
    'two terms of one name': (lambda: SegmentationLoss(terms=[LossTerm('pixel', 1.0, None)]), 'pixel'),
    'counts of a label outside': (lambda: count_labels([labels(3, 3) + 250], K), 'mask 0'),
    'presence of floats': (lambda: presence_target(r(2, 8, 8), K), 'outside 0..4'),
    # metrics
    'confusion of two shapes': (lambda: confusion_matrix(labels(2, 8, 8), labels(2, 8, 9), K), '(2, 8, 9)'),
    'confusion of other classes': (lambda: confusion_matrix(r(2, 4, 8, 8), labels(2, 8, 8), K), '(2, 4, 8, 8)'),
    'confusion of nan': (lambda: confusion_matrix(r(2, K, 8, 8) * nan, labels(2, 8, 8), K), 'nan'),
    'confusion of a label outside': (lambda: confusion_matrix(labels(2, 8, 8) + 9, labels(2, 8, 8), K), 'pred'),
    'confusion of a true label outside': (lambda: confusion_matrix(labels(2, 8, 8), labels(2, 8, 8) + 9, K), 'target'),
    'probabilities of nan': (lambda: reliability(r(2, K, 8, 8) * nan, labels(2, 8, 8)), 'nan'),
    # data
    'unknown data set': (lambda: open_dataset('camvdi', '/tmp'), 'camvid'),
    'data set that is not there': (lambda: open_dataset('camvid', '/nowhere'), '/nowhere'),
    'unknown option of a data set': (lambda: open_dataset('camvid', '/tmp', split=1), 'split'),
    'unknown miniature': (lambda: make_miniature('lipp', '/tmp/not-written'), 'lip'),
    'unknown kind of scene': (lambda: ContextScenes(3, kinds='boats'), 'boats'),
    'scene of 8 pixels': (lambda: ContextScenes(3, size=8), '32'),
    'negative number of scenes': (lambda: ContextScenes(-3), '-3'),
    'fewer scenes than a batch': (lambda: scenes_dls(4, 4, 48, bs=8), 'batch'),
    'no validation pictures': (
        lambda: segmentation_dls([(picture(), np.zeros((8, 9), np.uint8))] * 4, [], DatasetInfo('one', ('a',)), bs=2),
        'validation',
    ),
    'image that is not there': (lambda: load_image('/nowhere.png'), '/nowhere.png'),
    'image that is a folder': (lambda: load_image('/tmp'), '/tmp'),
    'mask that is not there': (lambda: load_mask('/nowhere.png'), '/nowhere.png'),
    'picture of floats': (lambda: as_rgb(np.zeros((4, 4, 3), np.float32)), 'float32'),
    'picture of two channels': (lambda: as_rgb(np.zeros((4, 4, 2), np.uint8)), '(4, 4, 2)'),
    'mask in RGB': (lambda: check_mask(picture(), K), '(8, 9, 3)'),
    'mask of fractions': (lambda: check_mask(np.zeros((4, 4)), K), 'float64'),
    'mask of -1': (lambda: check_mask(np.full((4, 4), -1), K), '-1'),
    'mask of 300': (lambda: check_mask(np.full((4, 4), 300), K), '300'),
    'mask of a label outside': (lambda: check_mask(np.full((4, 4), 7, np.uint8), K), 'label 7'),
    'mask of another size': (lambda: check_mask(np.zeros((4, 4), np.uint8), K, size=(5, 4)), '5×4'),
    'augmentation to nothing': (lambda: Augment(0), 'size'),
    'augmentation of scales in the wrong order': (lambda: Augment(32, scale=(2.0, 0.5)), 'scale'),
    'augmentation by 90 degrees': (lambda: Augment(32, rotate=90), 'rotate'),
    'augmentation with a probability of 2': (lambda: Augment(32, flip=2), 'flip'),
    'augmentation of colours by nan': (lambda: Augment(32, jitter=nan), 'jitter'),
    # training
    'unknown optimiser': (lambda: learner(opt='adam'), 'adamw'),
    'unknown precision': (lambda: learner(precision='fp8'), 'bf16'),
    'no batch to a step': (lambda: learner(accumulate=0), 'accumulate'),
    'negative rate': (lambda: learner(lr=-1.0), 'lr'),
    'rate nan': (lambda: learner(lr=nan), 'lr'),
    'rate of the head inf': (lambda: learner(head_lr=inf), 'head_lr'),
    'unknown class weights': (lambda: learner(weights='log'), 'sqrt'),
    'unknown compiler': (lambda: learner(compile='gcc'), 'gcc'),
    'options beside a model': (lambda: learner(model=model(), width=64), 'width'),
    'unknown model of a learner': (lambda: learner(model='encent'), 'encnet'),
    'checkpoint at no step': (lambda: Checkpoint('/tmp', every=0), 'every'),
    'checkpoint at a word': (lambda: Checkpoint('/tmp', every='step'), 'epoch'),
    'checkpoint of a learner': (lambda: learner(cbs=Checkpoint('/tmp')), 'fit'),
    'checkpoint that is none': (lambda: read_checkpoint(__file__), 'test_bad_calls.py'),
    'unknown synchronised norm': (lambda: convert_sync_bn(model(), kind='thrice'), 'twice'),
    'norm that cannot be synchronised': (lambda: convert_sync_bn(torch.nn.BatchNorm3d(3)), 'BatchNorm3d'),
    'unknown recipe': (lambda: recipe('encnet/pascal'), 'encnet/pascal'),
    'unknown entry of a recipe': (lambda: recipe('encnet/pascal_context/resnet50', epoch=3), 'epoch'),
    'recipe of no epoch number': (lambda: recipe('encnet/pascal_context/resnet50', epochs='many'), 'epochs'),
    # test time
    'no scale': (lambda: ask(scales=()), 'scales'),
    'scale 0': (lambda: ask(scales=(0,)), 'scales'),
    'scale inf': (lambda: ask(scales=(inf,)), 'scales'),
    'crop 0': (lambda: ask(crop=0), 'crop'),
    'crop of three sides': (lambda: ask(crop=(8, 8, 8)), 'crop'),
    'stride 0': (lambda: ask(stride=0), 'stride'),
    'stride 2': (lambda: ask(stride=2), 'stride'),
    'unknown average': (lambda: ask(average='mean'), 'prob'),
    'no window in a batch': (lambda: ask(batch_size=0), 'batch_size'),
    'mirror of another length': (lambda: ask(flip_labels=[0, 1]), 'flip_labels'),
    'mirror with a label twice': (lambda: ask(flip_labels=[0, 1, 2, 3, 3]), 'flip_labels'),
    'image of bytes': (lambda: ask(image=torch.zeros(3, 8, 8, dtype=torch.uint8)), 'uint8'),
    'image of two channels': (lambda: ask(image=r(2, 8, 8)), '(2, 8, 8)'),
    'image without pixels': (lambda: ask(image=r(3, 0, 8)), '(3, 0, 8)'),
    'scores of nan': (lambda: Predictor(lambda x: x * nan)(r(3, 8, 8)), 'nan'),
    'model with a number for an answer': (lambda: Predictor(lambda x: x.mean())(r(3, 8, 8)), 'logits'),
    'unknown combination': (lambda: ensemble(r(2, 1, K, 4, 4), 'median'), 'avgmax'),
    'weights of another number of views': (lambda: ensemble(r(2, 1, K, 4, 4), torch.ones(3, K)), '(3, 5)'),
    'picture of floats to a predictor': (lambda: Predictor(model()).labels(np.zeros((8, 8, 3))), 'float64'),
    'no pictures to score': (lambda: evaluate(Predictor(model()), [], K), 'one picture'),
    'mask of another size than its picture': (
        lambda: evaluate(Predictor(model()), [(picture(), np.zeros((4, 4), np.uint8))], K),
        '4×4',
    ),
    'unknown server': (lambda: write_submission(Predictor(model()), [], '/tmp/not-written', 'coco'), 'voc'),
    # random fields
    'reach 0': (lambda: field(theta_alpha=0.0), 'theta_alpha'),
    'reach nan': (lambda: field(theta_beta=nan), 'theta_beta'),
    'unknown normalisation': (lambda: field(normalisation='row'), 'symmetric'),
    'unknown method': (lambda: field(method='slow'), 'fast'),
    'negative iterations': (lambda: field(n_iters=-1), 'n_iters'),
    'compatibility that is not square': (lambda: field(compatibility=r(3, 4)), '(3, 4)'),
    'picture of another size than the scores': (
        lambda: field()(r(1, K, 8, 8), torch.zeros(1, 3, 8, 9)),
        '(1, 3, 8, 9)',
    ),
    'scores of nan to the dense field': (lambda: field()(r(1, K, 8, 8) * nan, torch.zeros(1, 3, 8, 8)), 'nan'),
    'unknown form of the guidance field': (lambda: GuidanceCRF(form='add'), 'additive'),
    'class logits of another number of classes': (
        lambda: GuidanceCRF()(r(1, K, 8, 8), r(1, 3, 8, 8), r(1, 4)),
        'class_logits',
    ),
    'picture that is not normalised': (
        lambda: GuidanceCRF()(r(1, K, 8, 8), 255 * torch.rand(1, 3, 8, 8)),
        'normalised',
    ),
    'target of floats to the guidance field': (
        lambda: GuidanceCRF().piecewise_loss(r(1, K, 8, 8), r(1, 3, 8, 8), r(1, 8, 8)),
        'target',
    ),
    'negative radius': (lambda: guided_filter(r(1, 3, 8, 8), r(1, K, 8, 8), -1, 0.1), 'radius'),
    'negative eps': (lambda: guided_filter(r(1, 3, 8, 8), r(1, K, 8, 8), 2, -0.1), 'eps'),
    'guide of one channel': (lambda: guided_filter(r(1, 1, 8, 8), r(1, K, 8, 8), 2, 0.1), '(1, 1, 8, 8)'),
    'too many labellings': (lambda: exact_crf(r(40, 9), r(1, 9, 9), torch.tensor([[0], [1]])), '40'),
    'unknown relation': (lambda: range_box_edges(4, 4, 'below'), 'above'),
    'damping 1': (lambda: mean_field(r(3, K), r(1, K, K), torch.tensor([[0], [1]]), damping=1.0), 'damping'),
    'band of no width': (lambda: boundary_band(labels(8, 8), 0), 'width'),
    # results
    'unknown device': (lambda: default_device('gpu'), 'cuda'),
    'unknown experiment': (lambda: run_experiment('scnees'), 'scenes'),
}


@pytest.mark.parametrize('name', CALLS)
def test_bad_call(name):
    call, words = CALLS[name]
    with pytest.raises((ValueError, OSError)) as found:
        call()
    assert words in str(found.value), f'{name}: expected {words!r} in: {found.value}'
