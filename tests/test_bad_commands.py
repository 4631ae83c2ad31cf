"""Every bad command line ends with the right exit code and one line that helps; nothing hangs, nothing is written,
nothing is accepted."""

import contextlib
import io
import os
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from bad_commands import bad_commands
from PIL import Image
from safetensors.torch import save_file

from ctxseg_nb import cli
from ctxseg_nb.models.segmentor import create_model, save_segmentor
from ctxseg_nb.testing.miniatures import make_miniature

BAD = list(bad_commands())


def small_camvid(folder):
    rng = np.random.default_rng(0)
    for split, n in (('train', 2), ('val', 1)):
        for part, shape, most in ((split, (16, 24, 3), 255), (f'{split}annot', (16, 24), 12)):
            (folder / part).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, most, shape, dtype=np.uint8)).save(folder / part / f'{i}.png')
    (folder / 'codes.txt').write_text('\n'.join(f'class{k}' for k in range(11)) + '\nvoid\n')
    return folder


def damaged(root):
    "Name → a small CamVid with one fault"
    mask = np.ones((16, 24), np.uint8)

    def write(array):
        return lambda c: Image.fromarray(array).save(c / 'trainannot' / '1.png')

    def cut(name):
        return lambda c: (c / name).write_bytes((c / name).read_bytes()[:70])

    def pipe(name):
        return lambda c: ((c / name).unlink(), os.mkfifo(c / name))

    def void(c):
        for i in range(2):
            Image.fromarray(mask * 11).save(c / 'trainannot' / f'{i}.png')

    faults = dict(
        nomasks=lambda c: shutil.rmtree(c / 'trainannot'),
        noimages=lambda c: [f.unlink() for f in (c / 'train').iterdir()],
        onemask=lambda c: (c / 'trainannot' / '1.png').unlink(),
        fewcodes=lambda c: (c / 'codes.txt').write_text('a\nb\n'),
        pipecodes=pipe('codes.txt'),
        badlabels=write(mask * 77),
        badsize=write(mask[:10]),
        rgbmask=write(np.stack([mask] * 3, -1)),
        cutimage=cut('train/1.png'),
        cutmask=cut('trainannot/1.png'),
        pipeimage=pipe('train/1.png'),
        void=void,
    )
    for name, damage in faults.items():
        damage(small_camvid(root / name))
    return {name: root / name for name in faults}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Files and folders of all kinds, good and bad, by name"
    root = tmp_path_factory.mktemp('world')

    def model(name, n=3, change=lambda net: None):
        net = create_model('fcn', n, backbone_options=dict(width=8), width=8)
        change(net)
        save_segmentor(net, root / name, [f'class{k}' for k in range(n)])
        return f'{root / name}.safetensors'

    found = dict(
        root=root,
        out=root / 'out',
        none=root / 'none',
        folder=root / 'folder',
        file=root / 'file.txt',
        pipe=root / 'pipe',
        empties=root / 'empties',
        pictures=root / 'pictures',
        photo=root / 'photo.png',
        cutphoto=root / 'folder' / 'cut.png',
        model=model('model'),
        voc21=model('voc21', 21),
        recipe='encnet/pascal_context/resnet50',
        camvid=small_camvid(root / 'camvid'),
    )
    for name in ('folder', 'empties', 'pictures'):
        found[name].mkdir()
    os.mkfifo(found['pipe'])
    found['file'].write_text('some text\n')
    (root / 'file.txt.onnx').write_text('no graph')
    Image.fromarray(np.zeros((9, 13, 3), np.uint8)).save(found['photo'])
    shutil.copy(found['photo'], found['pictures'])
    found['cutphoto'].write_bytes(found['photo'].read_bytes()[:40])
    for name in ('empty', 'cut', 'nocard', 'other'):
        model(name)
        found[name] = root / name

    def blast(net):
        net.head.classify[1].weight.data[0] = float('nan')

    model('nan', change=blast)
    found['nan'] = root / 'nan'
    (root / 'empty.safetensors').write_bytes(b'')
    (root / 'empty.onnx').write_bytes(b'')
    (root / 'cut.safetensors').write_bytes((root / 'cut.safetensors').read_bytes()[:500])
    (root / 'nocard.safetensors').write_bytes(b'8' + (root / 'nocard.safetensors').read_bytes())
    (root / 'nocard.json').unlink()
    save_file(create_model('fcn', 4, width=8).state_dict(), root / 'other.safetensors')  # tensors without a card
    found['context'] = make_miniature('pascal_context', root / 'context')
    from ctxseg_nb.experiments.recipes import RECIPES

    found['after'] = next(n for n, r in RECIPES.items() if r.after and r.data == 'pascal_context')
    found['cifar'] = next(n for n, r in RECIPES.items() if r.data == 'cifar10')
    return found | damaged(root)


def give_up(*_):
    raise TimeoutError('hangs')


def outcome(words, says, code, world):
    "'' for an error as it should be, or what is wrong with it"
    words = [w.format(**world) if '{' in w and "'" not in w and '1:2' not in w else w for w in shlex.split(words)]
    before, err, out = set(world['root'].rglob('*')), io.StringIO(), io.StringIO()
    if (
        not any(w in ('--out', '--recipe') for w in words)
        and words
        and words[0] in ('demo', 'train', 'cifar', 'predict')
    ):
        words += ['--out', str(world['out'])]
    if '--recipe' in words and '--dry-run' not in words and '--out' not in words:
        words += ['--out', str(world['out'])]
    old = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
            found = cli.main(words)
    except TimeoutError:
        return 'hangs'
    except BaseException as e:
        return f'traceback: {type(e).__name__}: {e}'
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    text = err.getvalue()
    if 'hangs' in text:
        return 'hangs'
    if found != code:
        return f'exit code {found}: {text[:200]}'
    if text.count('\n') != 1:
        return f'{text.count(chr(10))} lines: {text[:300]}'
    new = {
        f for f in set(world['root'].rglob('*')) - before if f != world['out'] and f.name != '.checkpoint.lock'
    }  # of a training that had begun
    if new:
        return f'written: {sorted(map(str, new))}'
    here = [f.name for f in Path().iterdir() if f.name != '.cache']  # which has the locks of experiments
    if here:
        return f'written: {here}'
    missing = [s for s in says if s not in text]
    return f'does not say {missing}: {text}' if missing else ''


def test_there_are_enough():
    assert len(BAD) >= 300 and len({words for words, *_ in BAD}) == len(BAD)


@pytest.mark.parametrize('words, says, code', BAD, ids=[b[0][:70] for b in BAD])
def test_bad_command(words, says, code, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not outcome(words, says, code, world)


@pytest.mark.parametrize(
    'words, says',
    [
        (['trian'], 'no command'),
        (['train', '--lr', 'nan'], '--lr'),
        (['predict', 'cat.png', '--model', 'no.safetensors'], 'no.safetensors'),
    ],
)
def test_in_a_process_of_its_own(ctxseg, tmp_path, words, says):
    ran = ctxseg(*words)
    assert (
        ran.returncode == 2
        and ran.stderr.count('\n') == 1
        and says in ran.stderr
        and not ran.stdout
        and not list(tmp_path.iterdir())
    )
