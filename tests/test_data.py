"""Data as people have it: files of every data set that are damaged, missing or misleading, and labels of every type
of integers."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from scipy.io import savemat

import ctxseg_nb
from ctxseg_nb.cli import main
from ctxseg_nb.core import IGNORE, DatasetInfo
from ctxseg_nb.data.camvid import CamVid
from ctxseg_nb.data.dataloaders import segmentation_dls
from ctxseg_nb.data.dataset import DATASETS, check_mask, image_size, load_image, load_mask, open_dataset, read_lines
from ctxseg_nb.data.transforms import Augment
from ctxseg_nb.data.verify import verify_dataset
from ctxseg_nb.models.segmentor import MODELS, create_model
from ctxseg_nb.testing.miniatures import MINIATURES, make_mask, make_miniature, write_pair
from ctxseg_nb.training.learner import segmentation_learner, training_counts
from ctxseg_nb.training.losses import SegmentationLoss, class_weights, pixel_cross_entropy

CARD = DatasetInfo('toy', ('a', 'b', 'c'))
NAMES = sorted(set(DATASETS) & set(MINIATURES))  # whoever adds a data set may do without a miniature
MODELS = sorted(MODELS)
LISTS = dict(
    camvid='codes.txt',
    ccp='train.txt',
    voc2012='VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt',
    pascal_context='VOCdevkit/VOC2010/ImageSets/Main/train.txt',
    coco_stuff10k='imageLists/train.txt',
    ade20k='objectInfo150.txt',
    siftflow='TestSet1.txt',
    lip='TrainVal_images/train_id.txt',
    cihp='Training/train_id.txt',
    nyudv2='train.txt',
    coco_objects='annotations/instances_train2017.json',
)  # the others list the files of a folder
NAMED = ('ccp', 'lip', 'cihp', 'nyudv2')  # whose lists have names that become paths
ROTATED = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:Description tiff:Orientation="6" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/></x:xmpmeta>'
ERRORS = ValueError, FileNotFoundError


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "`whole(name)`: a miniature, made once, not to be changed"
    made = {}

    def get(name):
        if name not in made:
            made[name] = make_miniature(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture
def copied(whole, tmp_path):
    "`copied(name)`: the path of a miniature of one's own"
    return lambda name: shutil.copytree(whole(name), tmp_path / name)


def fails(call, *words):
    "The message of the one error that names all `words`"
    with pytest.raises(ERRORS) as caught:
        call()
    for word in words:
        assert str(word) in str(caught.value), str(caught.value)
    return str(caught.value)


def file_of(mask):
    return mask if mask.exists() else mask.parent  # an annotation file, where it holds the masks of many pictures


# ---- every data set


@pytest.mark.parametrize('name', NAMES)
def test_reads(name, whole):
    ds = open_dataset(name, whole(name))
    for split in ds.splits:
        for image, mask in ds.split(split):
            picture, labels = ds.read(image), ds.read_mask(mask)
            assert picture.dtype == labels.dtype == np.uint8 and picture.shape == (*labels.shape, 3)
            assert ((labels < ds.info.n_classes) | (labels == IGNORE)).all()
            if name != 'siftflow':
                assert image_size(image) == picture.shape[:2]


@pytest.mark.parametrize('how', ['cut', 'empty', 'text', 'folder'])
@pytest.mark.parametrize('name', NAMES)
def test_damaged_image(name, how, copied):
    ds = open_dataset(name, copied(name))
    image = ds.split('train')[0][0]
    damage(image, how)
    fails(lambda: ds.read(image), image, 'not a readable image')
    assert any(str(image) in fault for fault in verify_dataset(ds, progress=False, splits=['train']).faults)


@pytest.mark.parametrize('how', ['cut', 'empty', 'text', 'colour', 'lossy', 'fractions'])
@pytest.mark.parametrize('name', NAMES)
def test_damaged_mask(name, how, copied):
    ds = open_dataset(name, copied(name))
    mask = ds.split('train')[0][1]
    file = file_of(mask)
    if not damage(file, how):
        pytest.skip(f'{name} has no masks of this kind')
    fresh = open_dataset(name, ds.path)  # which has read nothing yet
    fails(lambda: fresh.read_mask(mask), file)
    assert any(str(file) in fault for fault in verify_dataset(fresh, progress=False, splits=['train']).faults)


def damage(file, how):
    "Spoil a file; False where its format cannot be spoilt like this"
    data = file.read_bytes()
    if how == 'cut':
        file.write_bytes(data[: len(data) // 2])
    if how == 'empty':
        file.write_bytes(b'')
    if how == 'text':
        file.write_text('not what it seems')
    if how == 'folder':
        file.unlink()
        file.mkdir()
    if how in ('colour', 'lossy'):
        if file.suffix != '.png':
            return False
        with Image.open(file) as im:
            im = im.convert('RGB' if how == 'colour' else 'L')
        im.save(file, format='PNG' if how == 'colour' else 'JPEG')
    if how == 'fractions':
        if file.suffix != '.mat':
            return False
        savemat(file, {k: np.full((48, 64), 0.5) for k in ('groundtruth', 'S', 'LabelMap', 'segmentation', 'GTcls')})
    return True


@pytest.mark.parametrize('which', [0, 1], ids=['image', 'mask'])
@pytest.mark.parametrize('name', NAMES)
def test_missing_file(name, which, copied):
    ds = open_dataset(name, copied(name))
    pair = ds.split('train')[0]
    file = file_of(pair[which])
    file.unlink()
    fresh = open_dataset(name, ds.path)
    if name in ('kitti', 'coco_stuff164k', 'ade20k', 'camvid', 'cityscapes', 'siftflow', 'sunrgbd') and which == (
        name == 'kitti'
    ):
        fails(
            lambda: fresh.read(file) if which == 0 else fresh.read_mask(file), file
        )  # what is listed is what is there
    else:
        fails(lambda: fresh.split('train'), file)


@pytest.mark.parametrize('name', NAMES)
def test_empty_split(name, copied):
    path = copied(name)
    if name in LISTS:
        (path / LISTS[name]).write_text('{}' if name == 'coco_objects' else '\n')
    else:
        for image, _ in open_dataset(name, path).split('train'):
            image.unlink()
        for mask in path.rglob('*.mat'):
            mask.unlink()
    fails(lambda: open_dataset(name, path).split('train'))


@pytest.mark.parametrize('name', sorted(set(LISTS) - {'coco_objects'}))
def test_byte_order_mark_and_windows_line_ends(name, whole, copied):
    path = copied(name)
    text = (path / LISTS[name]).read_text()
    (path / LISTS[name]).write_bytes(
        ('\ufeff' + '\r\n'.join(line + '  ' for line in text.splitlines()) + '\r\n').encode()
    )
    old, new = (open_dataset(name, p) for p in (whole(name), path))
    assert old.info == new.info
    assert [[f.name for f in pair] for pair in old.split('train')] == [
        [f.name for f in pair] for pair in new.split('train')
    ]


def test_byte_order_mark_in_annotations(copied):
    file = copied('coco_objects') / LISTS['coco_objects']
    file.write_text(file.read_text(), encoding='utf-8-sig')
    assert len(open_dataset('coco_objects', file.parent.parent).split('train')) == 2


@pytest.mark.parametrize('outside', ['../secret', '/etc/secret', r'..\secret', r'C:\secret', 'a/../../secret'])
@pytest.mark.parametrize('name', NAMED)
def test_names_stay_inside(name, outside, copied):
    path = copied(name)
    (path / LISTS[name]).write_text(outside + '\n')
    fails(lambda: open_dataset(name, path).split('train'), path / LISTS[name], outside)


def test_names_in_annotations_stay_inside(copied):
    file = copied('coco_objects') / LISTS['coco_objects']
    found = json.loads(file.read_text())
    found['images'][0]['file_name'] = '/etc/passwd'
    file.write_text(json.dumps(found))
    fails(lambda: open_dataset('coco_objects', file.parent.parent).split('train'), file, '/etc/passwd')


def python(script, **environment):
    return subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)) | environment,
    )


def test_every_data_set_has_a_miniature(tmp_path):
    "every one of the library; also where nothing else was imported before"
    assert set(DATASETS) == set(MINIATURES)
    end = python(
        f"from ctxseg_nb.testing.miniatures import make_miniature; make_miniature('lip', {str(tmp_path / 'lip')!r}); "
        "make_miniature('nope', 'x')"
    )
    assert (tmp_path / 'lip' / 'TrainVal_images').exists() and "unknown miniature 'nope'; there are" in end.stderr


def test_the_library_does_not_import_what_is_for_tests():
    "Every module of the library is imported; `ctxseg_nb.testing` is not among what that loads"
    end = python("""
import sys, ctxseg_nb, ctxseg_nb.all, ctxseg_nb.cli
from importlib import import_module
from pkgutil import walk_packages
for m in walk_packages(ctxseg_nb.__path__, 'ctxseg_nb.'):
    if '.testing.' not in m.name: import_module(m.name)
print([name for name in sys.modules if name.startswith('ctxseg_nb.testing.')])""")
    assert end.stdout.strip() == '[]', end.stderr


def test_adding_a_data_set_is_one_file(tmp_path):
    """The class that CONTRIBUTING.md shows, dropped into a copy of the package, is known by its name; it has no
    miniature"""
    repository = Path(ctxseg_nb.__file__).parent.parent
    if not (repository / 'CONTRIBUTING.md').exists():
        pytest.skip('not in a checkout')
    shown = (
        (repository / 'CONTRIBUTING.md')
        .read_text(encoding='utf-8')
        .split('## Add a data set')[1]
        .split('```python\n')[1]
        .split('```')[0]
    )
    shutil.copytree(repository / 'ctxseg_nb', tmp_path / 'ctxseg_nb', ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path / 'ctxseg_nb' / 'data' / 'pets.py').write_text(shown)
    for i, split in enumerate(['train', 'train', 'val']):
        write_pair(tmp_path / 'pets' / split / f'{i}.jpg', tmp_path / 'pets' / 'masks' / f'{i}.png', [0, 1, 2], seed=i)
    end = python(f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
import ctxseg_nb
from ctxseg_nb.cli import main
from ctxseg_nb.testing.miniatures import read_every_pair
from ctxseg_nb.data.dataset import open_dataset
path = {str(tmp_path / 'pets')!r}
print(read_every_pair(open_dataset('pets', path)), main(['data', '--check', 'pets', path]))
main(['data'])""")
    assert "{'train': 2, 'val': 1} 0" in end.stdout and 'Get pets.zip from example.org' in end.stdout, end.stderr


@pytest.mark.parametrize(
    'name, options',
    [
        *((n, {}) for n in NAMES),
        ('pascal_context', dict(n_classes=60)),
        ('coco_objects', dict(classes='voc')),
        ('coco_objects', dict(min_region=200)),
        ('siftflow', dict(upscale=2)),
    ],
)
def test_classes_are_counted_without_files(name, options, whole):
    assert DATASETS[name].count_classes(**options) == open_dataset(name, whole(name), **options).info.n_classes


def test_options_that_a_data_set_does_not_take(whole):
    fails(
        lambda: open_dataset('camvid', whole('camvid'), upscale=2),
        "the data set camvid has no option 'upscale'; there are none",
    )
    fails(lambda: open_dataset('siftflow', whole('siftflow'), scale=2), "no option 'scale'; there are upscale")


def test_class_names_with_blanks(copied):
    path = copied('camvid')
    (path / 'codes.txt').write_text((path / 'codes.txt').read_text().replace('sign', 'traffic sign'))
    assert CamVid(path).info.class_names[6] == 'traffic sign'


@pytest.mark.parametrize('segmentation', [[], [[1, 2]], [[]], dict(size=[3, 4], counts=[2, 3]), None, 7])
def test_objects_without_an_outline(segmentation, copied):
    file = copied('coco_objects') / LISTS['coco_objects']
    found = json.loads(file.read_text())
    found['annotations'][2].update(segmentation=segmentation)
    found['annotations'][2].pop('segmentation', None) if segmentation is None else None
    file.write_text(json.dumps(found))
    ds = open_dataset('coco_objects', file.parent.parent)
    try:
        ds.read_mask(file / '9')
    except ValueError as e:
        assert str(file) in str(e) and 'object 3 of image 9' in str(e)
    else:
        pytest.skip('pycocotools draws this one')
    fails(lambda: open_dataset('coco_objects', ds.path, min_labelled=1).split('train'), file, 'object 3 of image 9')
    assert any('object 3 of image 9' in fault for fault in verify_dataset(ds, progress=False, splits=['train']).faults)


# ---- pictures


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp', 'tif'])
@pytest.mark.parametrize('note', ['exif', 'xmp'])
def test_size_is_that_of_the_picture_as_read(suffix, note, tmp_path):
    file, options = tmp_path / f'p.{suffix}', {}
    im = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    if note == 'exif':
        options = dict(exif=exif)
    elif suffix == 'png':
        options['pnginfo'] = PngImagePlugin.PngInfo()
        options['pnginfo'].add_itxt('XML:com.adobe.xmp', ROTATED)
    elif suffix in ('jpg', 'webp'):
        options = dict(xmp=ROTATED.encode())
    else:
        pytest.skip('no XMP in a TIFF')
    im.save(file, **options)
    assert image_size(file) == load_image(file).shape[:2] == (48, 32)


def test_check_takes_a_picture_as_it_is_read(copied):
    "A picture that lies on its side by XMP has the size of its mask, and is no fault"
    path = copied('lip')
    image, mask = open_dataset('lip', path).split('train')[0]
    with Image.open(image) as im:
        im.transpose(Image.Transpose.ROTATE_90).save(image, xmp=ROTATED.encode())
    assert load_image(image).shape[:2] == load_mask(mask).shape
    assert not [f for f in verify_dataset(open_dataset('lip', path), progress=False).faults if str(image) in f]


@pytest.mark.parametrize(
    'data',
    [b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', b'<svg xmlns="http://www.w3.org/2000/svg"/>', b'GIF89a'],
)
def test_other_formats_are_not_opened(data, tmp_path):
    (tmp_path / 'p.png').write_bytes(data)
    for read in (load_image, load_mask, image_size):
        fails(lambda: read(tmp_path / 'p.png'), 'p.png is not a readable', 'PNG, JPEG')


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'bmp', 'gif', 'tif', 'webp', 'ppm'])
def test_formats_that_are_read(suffix, tmp_path):
    Image.new('RGB', (8, 6), (250, 10, 10)).save(tmp_path / f'p.{suffix}')
    assert load_image(tmp_path / f'p.{suffix}').shape == (*image_size(tmp_path / f'p.{suffix}'), 3) == (6, 8, 3)


def test_pixel_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 40)
    Image.new('L', (9, 10)).save(tmp_path / 'p.png')
    for read in (load_image, load_mask, image_size):
        fails(lambda: read(tmp_path / 'p.png'), 'p.png', '90 pixels', '80 pixels', 'CTXSEG_MAX_PIXELS')


def test_pixel_limit_of_the_environment(tmp_path):
    Image.new('L', (9, 10)).save(tmp_path / 'p.png')
    script = f"from ctxseg_nb.data.dataset import load_image; load_image({str(tmp_path / 'p.png')!r})"
    ends = [python(script, CTXSEG_MAX_PIXELS=n) for n in ('80', '90', 'many')]
    assert [e.returncode for e in ends] == [
        1,
        0,
        1,
    ] and "CTXSEG_MAX_PIXELS: expected a number of pixels, found 'many'" in ends[2].stderr


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no named pipes here')
def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / 'p.png')
    for read in (load_image, load_mask, image_size, read_lines):
        fails(lambda: read(tmp_path / 'p.png'), 'p.png', 'pipe or device')
    fails(lambda: load_image('/dev/zero'), '/dev/zero', 'pipe or device')


# ---- masks


@pytest.mark.parametrize(
    'suffix, options', [('.jpg', {}), ('.webp', {}), ('.webp', dict(lossless=True)), ('.tif', dict(compression='jpeg'))]
)
def test_lossy_masks_are_refused(suffix, options, tmp_path):
    Image.fromarray(make_mask(range(12))).save(tmp_path / f'm{suffix}', **options)
    fails(lambda: load_mask(tmp_path / f'm{suffix}'), f'm{suffix} is not a readable mask: expected a file without loss')


@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.gif', '.tif', '.pgm'])
def test_lossless_masks_are_read(suffix, tmp_path):
    mask = make_mask([0, 1, 7, IGNORE])
    Image.fromarray(mask).save(tmp_path / f'm{suffix}')
    if suffix != '.gif':
        assert (load_mask(tmp_path / f'm{suffix}') == mask).all()  # GIF renumbers its colours
    else:
        load_mask(tmp_path / f'm{suffix}')


INTEGERS = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64, bool]


@pytest.mark.parametrize('kind', INTEGERS)
def test_arrays_of_integers_are_masks(kind):
    picture, mask = np.zeros((8, 8, 3), np.uint8), np.eye(8).astype(kind)
    dls = segmentation_dls([(picture, mask)] * 2, [(picture, mask)], CARD, bs=2, flip=0, device='cpu')
    assert (dls.one_batch()[1][0].numpy() == np.eye(8)).all()
    moved = Augment(8, scale=(1, 1), rotate=0, flip=0).view(picture, mask)[1]
    assert (moved == np.eye(8)).all()


@pytest.mark.parametrize(
    'mask, words',
    [
        (np.full((8, 8), 300), 'expected labels from 0 to 255, found 300 to 300'),
        (np.full((8, 8), -1), 'found -1 to -1'),
        (np.zeros((8, 8, 3), np.uint8), 'found uint8 (8, 8, 3)'),
        (np.zeros((8, 8)), 'found float64'),
        (np.zeros(8, np.uint8), 'found uint8 (8,)'),
    ],
)
def test_arrays_that_are_no_masks(mask, words):
    picture = np.zeros((8, 8, 3), np.uint8)
    fails(
        lambda: segmentation_dls([(picture, mask)] * 2, [(picture, mask)], CARD, bs=2, device='cpu').one_batch(), words
    )
    fails(lambda: Augment(8).view(picture, mask), words)
    fails(lambda: check_mask(mask, 3), words)


# ---- what there is to learn


def loaders(*masks, n_classes=2):
    pairs = [(np.zeros((8, 8, 3), np.uint8), np.asarray(m, np.uint8)) for m in masks]
    return segmentation_dls(pairs, pairs[:1], DatasetInfo('toy', tuple('abc'[:n_classes])), bs=2, flip=0, device='cpu')


@pytest.mark.parametrize('weights', ['sqrt', None])
def test_masks_of_0_and_255_are_not_trained_on(weights):
    binary = np.eye(8) * 255
    words = (
        '2 of 2 training masks: expected labels of 2 classes',
        "112 pixels of 'a'",
        '16 pixels of void (255)',
        'replace 255 by 1',
    )
    fails(lambda: segmentation_learner(loaders(binary, binary), weights=weights), *words)


@pytest.mark.parametrize('label', [0, 1, IGNORE])
def test_one_class_or_none_is_an_error(label):
    fails(lambda: segmentation_learner(loaders(*[np.full((8, 8), label)] * 2)), 'expected labels of 2 classes')


def test_a_class_without_pixels_is_said():
    masks = [np.eye(8), np.eye(8)]
    with pytest.warns(UserWarning, match=r'2 of 2 training masks: no pixel of 1 of 3 classes \(c\), 0 pixels of void'):
        segmentation_learner(loaders(*masks, n_classes=3))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert training_counts(loaders(*masks), 2).tolist() == [112, 16]


def test_check_finds_masks_of_0_and_255(copied, capsys):
    path = copied('camvid')
    for mask in path.glob('*annot/*.png'):
        Image.fromarray((load_mask(mask) % 2 * 255).astype(np.uint8)).save(mask)
    splits = verify_dataset(CamVid(path), progress=False).splits
    assert {s for s, report in splits.items() if 'classes' in report.faults} == {'train'}
    sky, void = splits['train'].pixels[0], splits['train'].void
    words = (
        f"train: 2 masks: expected labels of 11 classes, found {sky} pixels of 'sky' and {void} pixels of void (255)"
    )
    assert splits['train'].pixels[0] + splits['train'].void == 2 * 48 * 64
    assert main(['data', '--check', 'camvid', str(path)]) == 2
    assert words in capsys.readouterr().out


def test_check_says_which_classes_have_no_pixel(copied, capsys):
    path = copied('camvid')
    for mask in path.glob('trainannot/*.png'):
        labels = load_mask(mask)
        Image.fromarray(np.where(labels == 8, 9, labels).astype(np.uint8)).save(mask)
    assert main(['data', '--check', 'camvid', str(path)]) == 0
    assert 'no pixel of 1 classes: car' in capsys.readouterr().out


@pytest.mark.parametrize('power', [0.5, 1])
def test_a_class_that_was_not_met_weighs_as_much_as_the_rarest(power):
    for counts in ([900, 100, 0, 400], [0, 5, 10_000_000]):
        w, counts = class_weights(counts, power), torch.tensor(counts)
        assert torch.equal(w[counts == 0], w[counts > 0].max()[None])
        torch.testing.assert_close(w[counts > 0].mean(), torch.tensor(1.0))


# ---- targets


def losses_of(name, kind):
    torch.manual_seed(0)
    net = create_model(name, 5, aux=True).train()
    target = torch.randint(0, 5, (2, 24, 24))
    target[:, :3] = IGNORE
    loss = SegmentationLoss(net)
    total = loss(net(torch.randn(2, 3, 24, 24)), target.to(kind))
    return [total.detach(), *loss.values.values()]


@pytest.mark.parametrize('name', MODELS)
def test_targets_of_every_integer_type(name):
    want = losses_of(name, torch.int64)
    for kind in (torch.uint8, torch.int16, torch.int32):
        found = losses_of(name, kind)
        assert len(found) == len(want) > 1 and all(torch.equal(a, b) for a, b in zip(want, found)), kind


@pytest.mark.parametrize('kind', [torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_as_many_classes_as_a_byte_holds(kind):
    "255 and void; a mask of int8 holds fewer"
    logits, target = torch.randn(1, 255, 4, 64), torch.arange(256).view(1, 4, 64)
    weight = torch.rand(255)
    assert torch.equal(
        pixel_cross_entropy(logits, target.to(kind), weight), pixel_cross_entropy(logits, target, weight)
    )


def test_fractions_are_no_targets():
    with pytest.raises(ValueError, match='integer target'):
        SegmentationLoss()(torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4))
