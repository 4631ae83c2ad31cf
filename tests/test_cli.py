"""The command line: what it writes and what it leaves alone, options that are refused where they mean nothing, and
how it ends."""

import contextlib
import inspect
import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from ctxseg_nb import cli
from ctxseg_nb.models.segmentor import create_model, save_segmentor
from ctxseg_nb.training import learner
from ctxseg_nb.training import train as training

RECIPE = 'encnet/pascal_context/resnet50'


def run(*words):
    "Exit code, what was printed, what was complained of"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(w) for w in words])
    return code, out.getvalue(), err.getvalue()


def picture(file, seed=0, size=(9, 13)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "A small model on disk"
    file = tmp_path_factory.mktemp('model') / 'm'
    save_segmentor(create_model('fcn', 3, backbone_options=dict(width=8), width=8), file, ['sky', 'road', 'car'])
    return f'{file}.safetensors'


def camvid(folder, n_train=2, n_valid=1, labels=12):
    "A small data set in CamVid's layout, without its test split"
    rng = np.random.default_rng(0)
    for split, n in (('train', n_train), ('val', n_valid)):
        for i in range(n):
            picture(folder / split / f'{i}.png', i, (16, 24))
            (folder / f'{split}annot').mkdir(exist_ok=True)
            low, high = (0, labels) if np.isscalar(labels) else labels[split]
            mask = rng.integers(low, high, (16, 24))
            Image.fromarray(mask.astype(np.uint8)).save(folder / f'{split}annot' / f'{i}.png')
    (folder / 'codes.txt').write_text('\n'.join(f'class{k}' for k in range(11)) + '\nvoid\n')
    return folder


# predict: files that are written


def test_predict_never_writes_over_an_input(tmp_path, model):
    cat = picture(tmp_path / 'cat.png')
    before = cat.read_bytes()
    code, out, err = run('predict', cat, '--model', model, '--out', tmp_path)
    assert (code, err, cat.read_bytes()) == (0, '', before)
    assert {f.name for f in tmp_path.iterdir()} == {'cat.png', 'cat-png.png', 'cat-png-overlay.png'}, out


def test_predict_through_a_link_to_the_folder(tmp_path, model):
    cat = picture(tmp_path / 'a' / 'cat.png')
    (tmp_path / 'b').symlink_to(tmp_path / 'a')
    before = cat.read_bytes()
    assert run('predict', cat, '--model', model, '--out', tmp_path / 'b')[0] == 0 and cat.read_bytes() == before


def test_predictions_do_not_overwrite_each_other(tmp_path, model):
    files = [
        picture(tmp_path / name, i, (9, 10 + i))
        for i, name in enumerate(
            [
                'photo.bmp',
                'photo.tiff',
                'photo.webp',
                'a/x.png',
                'b/x.png',
                'c/x.png',
                'y.png',
                'y-overlay.png',
                'd/a/x.png',
            ]
        )
    ]
    code, out, err = run('predict', *files, '--model', model, '--out', tmp_path / 'p')
    assert (code, err, len(list((tmp_path / 'p').iterdir()))) == (0, '', 2 * len(files))
    for file, line in zip(files, out.splitlines()):  # each has the size of its picture
        labels, overlay = line.split(' -> ')[1].split(', ')
        assert Image.open(labels).size == Image.open(overlay).size == Image.open(file).size


def test_predictions_of_an_earlier_run_are_replaced_and_no_other_file(tmp_path, model):
    picture(tmp_path / 'cat.jpg')
    other = picture(tmp_path / 'p' / 'dog.png', 5)
    before = other.read_bytes()
    for _ in range(2):
        assert (
            run(
                'predict',
                tmp_path / 'cat.jpg',
                picture(tmp_path / 'dog.jpg'),
                '--model',
                model,
                '--out',
                tmp_path / 'p',
            )[0]
            == 0
        )
    assert sorted(f.name for f in (tmp_path / 'p').iterdir()) == [
        'cat-overlay.png',
        'cat.png',
        'dog-jpg-overlay.png',
        'dog-jpg.png',
        'dog.png',
    ]
    assert other.read_bytes() == before


def test_predict_leaves_out_what_cannot_be_read(tmp_path, model):
    good, torn = picture(tmp_path / 'good.png'), tmp_path / 'torn.png'
    torn.write_bytes(good.read_bytes()[:60])
    os.mkfifo(tmp_path / 'pipe.png')
    bad = torn, tmp_path / 'none.png', tmp_path / 'pipe.png'
    code, out, err = run('predict', *bad, good, '--model', model, '--out', tmp_path / 'p')
    assert code == 1 and (tmp_path / 'p' / 'good.png').exists() and len(out.splitlines()) == 1
    assert all(file.name in line for file, line in zip(bad, err.splitlines(), strict=True)), err


def test_predict_takes_folders_and_patterns(tmp_path, model):
    for name in ('a.png', 'b.jpg', 'c.txt', 'sub/d.png'):
        picture(tmp_path / 'in' / name) if name != 'c.txt' else (tmp_path / 'in' / name).write_text('')
    assert len(run('predict', tmp_path / 'in', '--model', model, '--out', tmp_path / 'p')[1].splitlines()) == 2
    assert (
        len(run('predict', tmp_path / 'in' / '*.jpg', '--model', model, '--out', tmp_path / 'q')[1].splitlines()) == 1
    )
    assert (
        len(
            run('predict', tmp_path / 'in' / 'a.png', tmp_path / 'in', '--model', model, '--out', tmp_path / 'r')[
                1
            ].splitlines()
        )
        == 2
    )
    code, out, err = run('predict', tmp_path / '*.gif', tmp_path, '--model', model, '--out', tmp_path / 's')
    assert code == 1 and 'no file fits the pattern' in err and 'no picture in the folder' in err


# options


def test_every_option_belongs_to_a_mode():
    "What a command takes is what its modes take, so that no option can be ignored"
    given = dict(
        train=[{}, dict(recipe=RECIPE), dict(recipe=RECIPE, dry_run=True)],
        evaluate=[{}, dict(multiscale=True), dict(submission='voc')],
        experiment=[{}, dict(names=['scenes'])],
        benchmark=[{}, dict(names=['memory'])],
        data=[{}, dict(check=['camvid', '.'])],
    )
    for name, f in cli.COMMANDS.items():
        options = {k: p.default for k, p in inspect.signature(f).parameters.items()}
        if name not in given:
            continue
        modes = [f(**(options | chosen)) for chosen in given[name]]
        taken = {o for mode in modes for o in inspect.signature(mode.run).parameters}
        chosen = {o for mode in modes for o in options if f'--{o.replace("_", "-")}' in mode.name} | {'names'}
        assert set(options) <= taken | chosen and taken <= {*options, *cli._config_fields(f)}, name


TRAINING = cli._fields(cli.TrainConfig)


@pytest.mark.parametrize(
    'option', [o for o in (*TRAINING, 'min_photos') if o not in inspect.signature(cli._run_recipe).parameters]
)
def test_options_that_a_recipe_does_not_use(option, tmp_path):
    how = cli._how_field(option, TRAINING[option]) if option in TRAINING else {}
    value = (
        []
        if 'action' in how
        else [how['choices'][0]]
        if 'choices' in how
        else ['.5,2']
        if option == 'scale'
        else ['.5' if option in ('jitter', 'flip', 'momentum', 'weight_decay') else '3']
    )
    code, out, err = run(
        'train',
        '--recipe',
        RECIPE,
        '--path',
        tmp_path,
        '--out',
        tmp_path / 'o',
        f'--{option.replace("_", "-")}',
        *value,
    )
    assert (
        code == 2
        and f'--{option.replace("_", "-")} does not apply with --recipe' in err
        and not (tmp_path / 'o').exists()
    )


def test_help_says_no_none():
    for name in cli.COMMANDS:
        code, out, err = run(name, '--help')
        assert (code, err) == (0, '') and 'None' not in out and 'SUPPRESS' not in out


def test_version():
    assert run('--version') == (0, f'ctxseg {cli.__version__}\n', '')


def test_choices_are_those_of_the_registries():
    from ctxseg_nb.evaluation.evaluator import SUBMISSION_FORMATS
    from ctxseg_nb.experiments.cifar import CIFAR_NETS

    def choices(f, name):
        return set(cli.get_args(inspect.signature(f).parameters[name].annotation))

    assert set(cli._how_field('opt', TRAINING['opt'])['choices']) == set(learner.OPTIMISERS) and choices(
        cli.evaluate, 'submission'
    ) == set(SUBMISSION_FORMATS)
    assert choices(cli.cifar, 'model') == set(CIFAR_NETS)


# how it ends


def test_ctrl_c_is_one_line():
    with mock.patch.object(cli, '_list_data', lambda: (_ for _ in ()).throw(KeyboardInterrupt)):
        code, out, err = run('data')
    assert (code, err) == (130, 'ctxseg: stopped by Ctrl-C\n')


def test_memory_that_does_not_suffice_is_one_line():
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\nmore"),
    ):
        with mock.patch.object(cli, '_list_data', mock.Mock(side_effect=error)) as f:
            cli.inspect.signature(cli._train)
            f.__signature__ = inspect.Signature()
            code, out, err = run('data')
        assert code == 2 and err.count('\n') == 1 and 'not enough memory' in err


def test_a_reader_that_leaves_is_no_error(tmp_path):
    "recipes | head -1, in processes of their own"
    both = subprocess.run(
        f'{sys.executable} -m ctxseg_nb.cli recipes | head -1',
        shell=True,
        text=True,
        capture_output=True,
        timeout=120,
        env=os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent), PYTHONUNBUFFERED='1'),
    )
    assert both.stderr == '' and both.stdout.startswith('recipe')


# switches of a training


def small_learner(**options):
    from ctxseg_nb.data.dataloaders import scenes_dls

    return learner.segmentation_learner(scenes_dls(8, 4, 32, 4), 'fcn', **options)


def test_the_command_line_hands_its_switches_on(tmp_path):
    "Every option of a training reaches what it is for"
    seen = {}

    class Stop(Exception):
        pass

    def spy(dls, model, **options):
        seen.update(
            options,
            model=model.config['model'],
            backbone=model.config['backbone'],
            bs=dls.train.bs,
            workers=dls.train.fake_l.num_workers,
            size=dls.one_batch()[0].shape[-2:],
        )
        raise Stop

    with mock.patch.object(training, 'segmentation_learner', spy), pytest.raises(Stop):
        run(
            'train',
            '--data',
            'camvid',
            '--path',
            camvid(tmp_path / 'c'),
            '--model',
            'gap',
            '--backbone',
            'squeezenet1_0',
            '--precision',
            'bf16',
            '--accumulate',
            2,
            '--channels-last',
            '--compile',
            'eager',
            '--opt',
            'sgd',
            '--head-lr',
            3,
            '--bs',
            2,
            '--workers',
            1,
            '--size',
            '16,24',
            '--out',
            tmp_path / 'o',
        )
    assert seen == dict(
        model='gap',
        backbone='squeezenet1_0',
        precision='bf16',
        accumulate=2,
        channels_last=True,
        compile='eager',
        opt='sgd',
        head_lr=3.0,
        bs=2,
        workers=1,
        size=(16, 24),
        lr=4e-3,
        weights='sqrt',
        metrics=None,
    )


def test_precision_is_that_of_the_arithmetic():
    "The network computes in the precision that was asked for"
    from fastai.basics import Callback

    for precision, dtype in ((None, torch.float32), ('bf16', torch.bfloat16)):
        learn, seen = small_learner(precision=precision), set()
        learn.model.head.convs[0][0].register_forward_hook(lambda module, x, y: seen.add(y.dtype))
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, cbs=Callback(before_validate=lambda self: None))
        assert dtype in seen


def test_accumulate_takes_fewer_steps():
    learn, steps = small_learner(accumulate=2), []
    learn.create_opt()
    step = learn.opt.step
    with (
        mock.patch.object(learn.opt, 'step', lambda *a, **k: steps.append(1) or step(*a, **k)),
        learn.no_bar(),
        learn.no_logging(),
    ):
        learn.fit(3)
    assert len(steps) == 3  # of six batches


def test_channels_last_is_the_layout_of_the_weights():
    for channels_last in (False, True):
        learn, seen = small_learner(channels_last=channels_last), set()
        conv = learn.model.head.convs[0][0]
        conv.register_forward_hook(lambda *_: seen.add(conv.weight.is_contiguous(memory_format=torch.channels_last)))
        with learn.no_bar(), learn.no_logging():
            learn.fit(1)
        assert seen == {channels_last}


@pytest.mark.parametrize('opt, decays', [('adamw', False), ('sgd', True)])
def test_weight_decay_of_batch_norm(opt, decays):
    "The papers' SGD decays the weights of batch norm, AdamW does not: one step with a loss that has no gradient"
    learn = small_learner(opt=opt, lr=0.1)
    learn.create_opt()
    learn.opt.set_hyper('wd', 0.5)
    norm = learn.model.head.convs[0][1].weight
    for p in learn.model.parameters():
        p.grad = torch.zeros_like(p)
    before = norm.detach().clone()
    learn.opt.step()
    assert torch.equal(norm, before) != decays


def test_zero_is_a_number():
    "lr=0 and head_lr=0 are not the default"
    learn = small_learner(lr=0, head_lr=0)
    learn.create_opt()
    assert learn.lr == 0 and [h['lr_mult'] for h in learn.opt.hypers] == [1, 0]
    for wrong in (
        dict(lr=-1),
        dict(lr=float('nan')),
        dict(head_lr=float('inf')),
        dict(head_lr=-2),
        dict(compile='foo'),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            small_learner(**wrong)


# weights of backbones


def test_imagenet_weights_of_a_network_of_timm(tmp_path):
    import timm

    made, seen = timm.create_model, {}

    def create(name, pretrained=False, **options):
        seen[name] = pretrained
        return made(name, pretrained=False, **options)

    with mock.patch.object(timm, 'create_model', create):
        code, out, err = run(
            'train',
            '--data',
            'camvid',
            '--path',
            camvid(tmp_path / 'c'),
            '--backbone',
            'resnet18',
            '--weights',
            'imagenet',
            '--size',
            32,
            '--bs',
            2,
            '--epochs',
            1,
            '--out',
            tmp_path / 'o',
        )
    assert (code, seen) == (0, dict(resnet18=True)), err
    with mock.patch.object(
        timm, 'create_model', mock.Mock(side_effect=type('ConnectError', (Exception,), {})('no route\nto the hub'))
    ):
        code, out, err = run(
            'train',
            '--data',
            'camvid',
            '--path',
            tmp_path / 'c',
            '--backbone',
            'resnet18',
            '--weights',
            'imagenet',
            '--bs',
            2,
            '--out',
            tmp_path / 'p',
        )
    assert (code, err) == (2, 'ctxseg: resnet18: the pretrained weights cannot be had (no route)\n')


def test_a_backbone_of_another_module_is_known_in_a_fresh_process(tmp_path):
    "A stored model on vgg16_fc6, which models.deepcrf registers, is read by a process that has not imported it"
    code = '''if True:
        import sys, torch
        from ctxseg_nb.models import backbones
        assert 'ctxseg_nb.models.deepcrf' not in sys.modules
        backbones.check_backbone('vgg16_fc6')
        with torch.device('meta'): print(backbones.create_backbone('vgg16_fc6').channels)'''
    ran = subprocess.run(
        [sys.executable, '-c', code],
        text=True,
        capture_output=True,
        env=os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent)),
    )
    assert ran.stdout == '[64, 128, 256, 512, 4096]\n', ran.stderr


def test_a_model_on_timm_is_loaded_in_a_fresh_process(tmp_path):
    "What timm imports is imported before the model is built on the meta device"
    from ctxseg_nb.models.segmentor import create_model, save_segmentor

    save_segmentor(create_model('fcn', 3, 'resnet10t', width=8), tmp_path / 'm', ['a', 'b', 'c'])
    code = f'from ctxseg_nb.models.segmentor import load_segmentor; print(load_segmentor({str(tmp_path / "m")!r})[1])'
    ran = subprocess.run(
        [sys.executable, '-c', code],
        text=True,
        capture_output=True,
        env=os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent)),
    )
    assert "['a', 'b', 'c']" in ran.stdout, ran.stderr


def test_listed_models_and_backbones_can_be_trained():
    from ctxseg_nb.models.backbones import check_backbone

    models, backbones = (line.split(':')[1].split(', ') for line in run('models')[1].splitlines())
    for name in models:
        cli._check_model(name.strip())
    for name in backbones[:-3]:
        check_backbone(name.strip())
    assert 'vgg16_fc6' in run('models')[1]


# data


def test_an_optional_split_may_be_absent(tmp_path):
    code, out, err = run('data', '--check', 'camvid', camvid(tmp_path / 'c'))
    assert (code, err, out.splitlines()[-1]) == (0, '', 'OK') and 'test: not there' in out
    assert run('data', '--check', 'camvid', tmp_path / 'c', '--splits', 'test')[0] == 2  # asked for
    (tmp_path / 'c' / 'test').mkdir()
    picture(tmp_path / 'c' / 'test' / '0.png')
    assert run('data', '--check', 'camvid', tmp_path / 'c')[0] == 2  # there, but without its masks


def test_void_everywhere(tmp_path):
    "No labelled pixel to learn from is an error; none to score on is said, and is null in the JSON file"
    words = '--size', 16, '--bs', 2, '--epochs', 1, '--out', tmp_path / 'o'
    code, out, err = run(
        'train', '--data', 'camvid', '--path', camvid(tmp_path / 'c', labels=dict(train=(11, 12), val=(0, 11))), *words
    )
    assert code == 2 and err.count('\n') == 1 and 'void' in err and not (tmp_path / 'o').exists()
    code, out, err = run(
        'train', '--data', 'camvid', '--path', camvid(tmp_path / 'd', labels=dict(train=(0, 11), val=(11, 12))), *words
    )
    assert code == 0 and 'no pixel with a label' in out
    assert (
        json.loads((tmp_path / 'o' / 'results.json').read_text(), parse_constant=pytest.fail)['metrics']['miou'] is None
    )


def test_weights_that_are_not_finite_are_refused(tmp_path):
    net = create_model('fcn', 3, backbone_options=dict(width=8), width=8)
    net.head.classify[1].weight.data[0, 0] = float('nan')
    save_segmentor(net, tmp_path / 'm', ['sky', 'road', 'car'])
    for words in (
        ['predict', picture(tmp_path / 'a.png'), '--model', tmp_path / 'm.safetensors'],
        ['evaluate', tmp_path / 'm.safetensors'],
        ['export', tmp_path / 'm.safetensors', tmp_path / 'm.pt2'],
    ):
        code, out, err = run(*words)
        assert code == 2 and err.count('\n') == 1 and 'head.classify.1.weight' in err and 'finite' in err


# progress


def test_progress_is_quiet_where_nobody_looks(ctxseg, tmp_path):
    "Without a terminal: lines of words, no carriage returns, nothing on standard error"
    ran = ctxseg(
        'demo', '--epochs', 1, '--n-train', 16, '--n-valid', 2, '--size', 32, '--out', tmp_path / 'o'
    )  # two scenes lack some groups of classes
    assert ran.returncode == 0 and '\r' not in ran.stdout + ran.stderr and 'train_loss' in ran.stdout, ran.stderr
    assert all(line.startswith('ctxseg: warning: ') for line in ran.stderr.splitlines()), ran.stderr


def test_progress_on_a_terminal_has_rate_and_estimate(tmp_path):
    pty, fcntl, termios = (pytest.importorskip(name) for name in ('pty', 'fcntl', 'termios'))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 25, 100, 0, 0))
    environment = os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent), OMP_NUM_THREADS='1')
    words = 'demo', '--epochs', '1', '--n-train', '48', '--n-valid', '4', '--size', '32', '--out', str(tmp_path / 'o')
    process = subprocess.Popen(
        [sys.executable, '-m', 'ctxseg_nb.cli', *words], stderr=theirs, stdout=subprocess.DEVNULL, env=environment
    )
    os.close(theirs)
    shown = b''
    with contextlib.suppress(OSError):  # the end of a terminal that nobody holds any more
        while new := os.read(ours, 4096):
            shown += new
    os.close(ours)
    assert process.wait() == 0 and b'steps' in shown and b'3/3' in shown and (b'it/s' in shown or b's/it' in shown), (
        shown[-2000:]
    )


def test_measurements_show_their_progress():
    from ctxseg_nb.experiments import benchmarks

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with contextlib.redirect_stderr(Terminal()) as err:
        benchmarks.side_by_side(lambda: 1.0, lambda: 2.0, rounds=3)
    assert 'measurements' in err.getvalue() and '/6' in err.getvalue()
