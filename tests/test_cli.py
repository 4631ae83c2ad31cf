"The command line: what it writes and what it leaves alone, options that are refused where they mean nothing, and how it ends."
import contextlib, inspect, io, json, os, signal, subprocess, sys, time
from pathlib import Path
from unittest import mock
import numpy as np, pytest, torch
from PIL import Image
from ctxseg_nb import cli
from ctxseg_nb.core import IGNORE
from ctxseg_nb.models.segmentor import create_model, save_model
from ctxseg_nb.training import learner

RECIPE = 'encnet/pascal_context/resnet50'


def run(*words):
    "Exit code, what was printed, what was complained of"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): code = cli.main([str(w) for w in words])
    return code, out.getvalue(), err.getvalue()


def picture(file, seed=0, size=(9, 13)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "A small model on disk"
    file = tmp_path_factory.mktemp('model')/'m'
    save_model(create_model('fcn', 3, backbone_options=dict(width=8), width=8), file, ['sky', 'road', 'car'])
    return f'{file}.safetensors'


def camvid(folder, n_train=2, n_valid=1, labels=12):
    "A small data set in CamVid's layout, without its test split"
    rng = np.random.default_rng(0)
    for split, n in (('train', n_train), ('val', n_valid)):
        for i in range(n):
            picture(folder/split/f'{i}.png', i, (16, 24))
            (folder/f'{split}annot').mkdir(exist_ok=True)
            mask = rng.integers(0, labels, (16, 24)) if np.isscalar(labels) else labels[split]*np.ones((16, 24))
            Image.fromarray(mask.astype(np.uint8)).save(folder/f'{split}annot'/f'{i}.png')
    (folder/'codes.txt').write_text('\n'.join(f'class{k}' for k in range(11)) + '\nvoid\n')
    return folder


# predict: files that are written

def test_predict_never_writes_over_an_input(tmp_path, model):
    cat = picture(tmp_path/'cat.png')
    before = cat.read_bytes()
    code, out, err = run('predict', cat, '--model', model, '--out', tmp_path)
    assert (code, err, cat.read_bytes()) == (0, '', before)
    assert {f.name for f in tmp_path.iterdir()} == {'cat.png', 'cat-png.png', 'cat-png-overlay.png'}, out


def test_predict_through_a_link_to_the_folder(tmp_path, model):
    cat = picture(tmp_path/'a'/'cat.png')
    (tmp_path/'b').symlink_to(tmp_path/'a')
    before = cat.read_bytes()
    assert run('predict', cat, '--model', model, '--out', tmp_path/'b')[0] == 0 and cat.read_bytes() == before


def test_predictions_do_not_overwrite_each_other(tmp_path, model):
    files = [picture(tmp_path/name, i, (9, 10 + i)) for i, name in enumerate(
        ['photo.bmp', 'photo.tiff', 'photo.webp', 'a/x.png', 'b/x.png', 'c/x.png', 'y.png', 'y-overlay.png', 'd/a/x.png'])]
    code, out, err = run('predict', *files, '--model', model, '--out', tmp_path/'p')
    assert (code, err, len(list((tmp_path/'p').iterdir()))) == (0, '', 2*len(files))
    for file, line in zip(files, out.splitlines()):   # each has the size of its picture
        labels, overlay = line.split(' -> ')[1].split(', ')
        assert Image.open(labels).size == Image.open(overlay).size == Image.open(file).size


def test_predictions_of_an_earlier_run_are_replaced_and_no_other_file(tmp_path, model):
    picture(tmp_path/'cat.jpg')
    other = picture(tmp_path/'p'/'dog.png', 5)
    before = other.read_bytes()
    for _ in range(2): assert run('predict', tmp_path/'cat.jpg', picture(tmp_path/'dog.jpg'), '--model', model, '--out', tmp_path/'p')[0] == 0
    assert sorted(f.name for f in (tmp_path/'p').iterdir()) == ['cat-overlay.png', 'cat.png', 'dog-jpg-overlay.png', 'dog-jpg.png', 'dog.png']
    assert other.read_bytes() == before


def test_predict_leaves_out_what_cannot_be_read(tmp_path, model):
    good, torn = picture(tmp_path/'good.png'), tmp_path/'torn.png'
    torn.write_bytes(good.read_bytes()[:60])
    os.mkfifo(tmp_path/'pipe.png')
    bad = torn, tmp_path/'none.png', tmp_path/'pipe.png'
    code, out, err = run('predict', *bad, good, '--model', model, '--out', tmp_path/'p')
    assert code == 1 and (tmp_path/'p'/'good.png').exists() and len(out.splitlines()) == 1
    assert all(file.name in line for file, line in zip(bad, err.splitlines(), strict=True)), err


def test_predict_takes_folders_and_patterns(tmp_path, model):
    for name in ('a.png', 'b.jpg', 'c.txt', 'sub/d.png'): picture(tmp_path/'in'/name) if name != 'c.txt' else (tmp_path/'in'/name).write_text('')
    assert len(run('predict', tmp_path/'in', '--model', model, '--out', tmp_path/'p')[1].splitlines()) == 2
    assert len(run('predict', tmp_path/'in'/'*.jpg', '--model', model, '--out', tmp_path/'q')[1].splitlines()) == 1
    assert len(run('predict', tmp_path/'in'/'a.png', tmp_path/'in', '--model', model, '--out', tmp_path/'r')[1].splitlines()) == 2
    code, out, err = run('predict', tmp_path/'*.gif', tmp_path, '--model', model, '--out', tmp_path/'s')
    assert code == 1 and 'no file fits the pattern' in err and 'no picture in the folder' in err


# options

def test_every_option_belongs_to_a_mode():
    "What a command takes is what its modes take, so that no option can be ignored"
    given = dict(train=[{}, dict(recipe=RECIPE), dict(recipe=RECIPE, dry_run=True)], evaluate=[{}, dict(multiscale=True), dict(submission='voc')],
                 experiment=[{}, dict(names=['scenes'])], benchmark=[{}, dict(names=['memory'])], data=[{}, dict(check=['camvid', '.'])])
    for name, f in cli.COMMANDS.items():
        options = {k: p.default for k, p in inspect.signature(f).parameters.items()}
        if name not in given: continue
        modes = [f(**(options | chosen)) for chosen in given[name]]
        taken = {o for mode in modes for o in inspect.signature(mode.run).parameters}
        chosen = {o for mode in modes for o in options if f'--{o.replace("_", "-")}' in mode.name} | {'names'}
        assert set(options) <= taken | chosen and taken <= set(options), name


@pytest.mark.parametrize('option', [o for o in inspect.signature(cli.train).parameters if o not in inspect.signature(cli._follow).parameters and o != 'dry_run'])
def test_options_that_a_recipe_does_not_use(option, tmp_path):
    how = cli._how(inspect.signature(cli.train).parameters[option].annotation)
    value = [] if 'action' in how else [how['choices'][0]] if 'choices' in how else ['3']
    code, out, err = run('train', '--recipe', RECIPE, '--path', tmp_path, '--out', tmp_path/'o', f'--{option.replace("_", "-")}', *value)
    assert code == 2 and f'--{option.replace("_", "-")} does not apply with --recipe' in err and not (tmp_path/'o').exists()


def test_help_says_no_none():
    for name in cli.COMMANDS:
        code, out, err = run(name, '--help')
        assert (code, err) == (0, '') and 'None' not in out and 'SUPPRESS' not in out


def test_version(): assert run('--version') == (0, f'ctxseg {cli.__version__}\n', '')


def test_choices_are_those_of_the_registries():
    from ctxseg_nb.inference.evaluate import SERVERS
    from ctxseg_nb.training.cifar import CIFAR_NETS
    def choices(f, name): return set(cli.get_args(inspect.signature(f).parameters[name].annotation))
    assert choices(cli.train, 'opt') == set(learner.OPTIMISERS) and choices(cli.evaluate, 'submission') == set(SERVERS)
    assert choices(cli.cifar, 'model') == set(CIFAR_NETS)


# how it ends

def test_ctrl_c_is_one_line():
    with mock.patch.object(cli, '_list_data', lambda: (_ for _ in ()).throw(KeyboardInterrupt)): code, out, err = run('data')
    assert (code, err) == (130, 'ctxseg: stopped by Ctrl-C\n')


def test_memory_that_does_not_suffice_is_one_line():
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\nmore")):
        with mock.patch.object(cli, '_list_data', mock.Mock(side_effect=error)) as f:
            cli.inspect.signature(cli._train)
            f.__signature__ = inspect.Signature()
            code, out, err = run('data')
        assert code == 2 and err.count('\n') == 1 and 'not enough memory' in err


def test_a_reader_that_leaves_is_no_error(tmp_path):
    "recipes | head -1, in processes of their own"
    both = subprocess.run(f'{sys.executable} -m ctxseg_nb.cli recipes | head -1', shell=True, text=True, capture_output=True, timeout=120,
                          env=os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent), PYTHONUNBUFFERED='1'))
    assert both.stderr == '' and both.stdout.startswith('recipe')
