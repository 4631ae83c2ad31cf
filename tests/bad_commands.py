"""Command lines that must be refused, and the words that the line of error must hold. {name} stands for a file or
folder of the fixture `world`."""

# options that take a number: (command and what it needs, option, whole numbers only?)
NUMBERS = [
    ('demo', 'epochs', True),
    ('demo', 'n-train', True),
    ('demo', 'n-valid', True),
    ('demo', 'size', True),
    ('demo', 'seed', True),
    ('train', 'epochs', True),
    ('train', 'bs', True),
    ('train', 'lr', False),
    ('train', 'head-lr', False),
    ('train', 'min-photos', True),
    ('train', 'seed', True),
    ('train', 'accumulate', True),
    ('train --recipe {recipe}', 'steps', True),
    ('train', 'workers', True),
    ('train --recipe {recipe}', 'seed', True),
    ('train --recipe {recipe}', 'workers', True),
    ('cifar --path {folder}', 'n-codes', True),
    ('cifar --path {folder}', 'width', True),
    ('cifar --path {folder}', 'epochs', True),
    ('cifar --path {folder}', 'lr', False),
    ('cifar --path {folder}', 'bs', True),
    ('cifar --path {folder}', 'seed', True),
    ('experiment scenes', 'seeds', True),
    ('evaluate {model}', 'min-photos', True),
    ('data --check camvid {camvid}', 'most', True),
]
NO_NUMBERS = ['-1', 'nan', 'inf', '1e99', 'many', "''", '99999999999999999999', '3,4']
WHOLE = ['1.5']
SIZES = [
    'train --size',
    'evaluate {model} --size',
    'predict {photo} --model {model} --size',
    'export {model} {out}.onnx --fixed',
]
NO_SIZES = ['0', '-5', '100000', 'big', '1,2,3', '12,', ',12', '1.5', '96,0', '9999,9999', 'nan', "''"]
FOLDERS = [
    'demo --out',
    'train --out',
    'train --recipe {recipe} --path {camvid} --out',
    'cifar --path {folder} --out',
    'experiment scenes --out',
    'benchmark memory --out',
    'evaluate {model} --out',
    'predict {photo} --model {model} --out',
]
NO_FOLDERS = [
    ('{file}', 'expected a folder, found the file'),
    ('{file}/below', 'expected a folder, found the file'),
    ('{pipe}', 'expected a folder'),
    ("''", 'expected a word, found nothing'),
    ('/dev/null/x', 'expected a folder'),
]
MODELS = ['predict {photo} --model @', 'evaluate @', 'export --fixed 32 @ {out}.onnx']
NO_MODELS = [
    ('{none}.safetensors', 'none'),
    ('{folder}', 'folder'),
    ('{file}', 'file.txt'),
    ('{empty}.safetensors', 'empty'),
    ('{cut}.safetensors', 'cut.safetensors'),
    ('{nocard}.safetensors', 'nocard'),
    ('{other}.safetensors', 'other'),
    ('{nan}.safetensors', 'finite'),
    ('{pipe}', 'pipe'),
    ("''", 'nothing'),
]
NO_GRAPHS = [
    ('{file}.onnx', 'file.txt.onnx'),
    ('{none}.onnx', 'none.onnx'),
    ('{empty}.onnx', 'empty.onnx'),
    ('{photo}', '.png'),
    ('{none}.pt2', 'none.pt2'),
]

# one a line: words of the command | what the line of error must say; more of it
LINES = r'''
trian | no command 'trian'; train
segment picture.png | no command 'segment'
Train | no command 'Train'
--train | no command '--train'
-v | no command '-v'
help | no command 'help'; predict
'' | no command ''
demo extra | unexpected word 'extra'
demo --model fnc | unknown model 'fnc'; did you mean fcn
demo --model resnet18 | unknown model 'resnet18'
demo --model '' | --model; found nothing
demo --epoch 3 | no option '--epoch'; --epochs
demo --bs 3 | no option '--bs'
demo --lr .1 | no option '--lr'
demo --size 64,32 | --size; '64,32'
demo --size 100000 | --size; 16 to 1024; '100000'
demo --size 3 | --size; 16 to 1024
demo --epochs | --epochs; expected one argument
demo --epochs 3 4 | unexpected word '4'
demo --n-train 0 | --n-train; from 1
demo --n-train 4 | 4 training; batch of 16
demo --n-valid 0 | --n-valid; from 1
demo --resume | no option '--resume'
train extra | unexpected word 'extra'
train --bs 0 | --bs; from 1; '0'
train --epochs 0 | --epochs; from 1; '0'
train --accumulate 0 | --accumulate; from 1
train --lr 0 | --lr; '0'
train --head-lr 0 | --head-lr; '0'
train --lr -0.1 | --lr; '-0.1'
train --lr 1e-3,1e-2 | --lr; '1e-3,1e-2'
train --path {camvid} | --path does not apply to the embedded scenes; --data
train --path {none} | --path does not apply to the embedded scenes
train --data scenes --path {camvid} | --path does not apply to the embedded scenes
train --min-photos 3 | --min-photos is for ccp, not for scenes
train --data camvid --path {camvid} --min-photos 3 | --min-photos is for ccp, not for camvid
train --data camvid --path {camvid} --min-photos 0 | --min-photos is for ccp
train --size 64,32 | --size; scenes are square; 64,32
train --size 8 | from 16 to 1024; 8
train --size 2000 | from 16 to 1024; 2000
train --data camvid | --data camvid needs --path
train --data imagenet | no data set 'imagenet'; there are scenes
train --data imagenet --path {camvid} | no data set 'imagenet'
train --data CamVid --path {camvid} | no data set 'CamVid'; camvid
train --data '' | --data; found nothing
train --data camvid --path '' | --path; found nothing
train --data camvid --path {none} | CamVid: no folder at; none
train --data camvid --path {file} | expected a folder; file.txt
train --data camvid --path {pipe} | expected a folder; pipe
train --data camvid --path {folder} | CamVid; codes.txt
train --data camvid --path {nomasks} | no masks at; trainannot
train --data camvid --path {noimages} | no .png or .jpg image in
train --data camvid --path {onemask} | no mask of 1.png
train --data camvid --path {fewcodes} --bs 2 | codes.txt: expected 12 lines; found 2
train --data camvid --path {pipecodes} --bs 2 | codes.txt; pipe
train --data camvid --path {badlabels} --bs 2 | 1.png: label 77; expected 0 to 11
train --data camvid --path {badsize} --bs 2 | 10×24; 16×24
train --data camvid --path {rgbmask} --bs 2 | 1.png; expected one channel of 8-bit labels, found mode RGB
train --data camvid --path {cutimage} --bs 2 | 1.png is not a readable image
train --data camvid --path {cutmask} --bs 2 | 1.png is not a readable mask
train --data camvid --path {pipeimage} --bs 2 | 1.png is not a readable image; pipe
train --data camvid --path {void} --bs 2 | of void
train --data camvid --path {camvid} --bs 64 | 2 training; batch of 64
train --data camvid --path {camvid} --bs 1000000 | 2 training; batch of 1000000
train --data ccp --path {camvid} | ClothingCoParsing: no class names at
train --data voc2012 --path {camvid} | VOC 2012: no images at
train --data pascal_context --path {camvid} | PASCAL Context: no images at
train --data ade20k --path {camvid} | ADE20K
train --data cityscapes --path {camvid} | Cityscapes
train --data lip --path {camvid} | LIP
train --data coco_stuff10k --path {camvid} | COCO
train --data coco_stuff164k --path {camvid} | COCO
train --model fnc | unknown model 'fnc'; did you mean fcn
train --model gpa | did you mean gap
train --model '' | --model; found nothing
train --model {model} | unknown model
train --backbone resnet81 | unknown backbone 'resnet81'; did you mean
train --backbone tiny1 | unknown backbone 'tiny1'; tiny
train --backbone '' | --backbone; found nothing
train --backbone {model} | unknown backbone
train --data camvid --path {camvid} --bs 2 --backbone vit_tiny_patch16_224 | vit_tiny_patch16_224: all its maps have one stride
train --weights imagenet | weights: there are none for the backbone tiny
train --weights {model} | weights: there are none for the backbone tiny
train --backbone tiny --weights {none} | weights: there are none for the backbone tiny
train --backbone featmap_nets --weights imagenet | weights: there are none for the backbone featmap_nets
train --backbone resnet18 --weights {model} | weights: expected 'imagenet' for resnet18
train --backbone resnet18 --weights random | weights: expected 'imagenet' for resnet18; random
train --data camvid --path {camvid} --bs 2 --backbone squeezenet1_0 --weights {none} | none: no such file
train --data camvid --path {camvid} --bs 2 --backbone squeezenet1_0 --weights {folder} | folder
train --data camvid --path {camvid} --bs 2 --backbone squeezenet1_0 --weights {file} | file.txt: expected a safetensors file
train --data camvid --path {camvid} --bs 2 --backbone squeezenet1_0 --weights {model} | does not fit
train --data camvid --path {camvid} --bs 2 --backbone squeezenet1_0 --weights {pipe} | pipe
train --weights '' | --weights; found nothing
train --opt adagrad | --opt; adagrad; adamw
train --opt '' | --opt; adamw
train --schedule step | --schedule; step; poly
train --class-weights all | --class-weights; all; sqrt
train --scale .5,2 | --scale: applies to random crops only
train --rotate 10 | --rotate: applies to random crops only
train --crop 32 --scale 2,1 | --scale; the smaller first
train --crop 32 --rotate 400 | --rotate; 400
train --train-split trainval | --train-split: the embedded scenes have no splits
train --data camvid --path {camvid} --bs 2 --valid-split dev | unknown split 'dev'
train --data camvid --path {camvid} --bs 2 --n-train 5 | expected at most 2 pictures
train --pairs-per-step 10 | --pairs-per-step: applies to the model deepcrf only, found fcn
train --momentum 2 | --momentum; '2'
train --flip 2 | --flip; '2'
train --model-options n_codes=8 | no option '--model-options'
train --precision fp8 | --precision; fp8; bf16
train --precision 16 | --precision; 16
train --data camvid --path {camvid} --bs 2 --compile foo | compile: expected one of; inductor; 'foo'
train --compile '' | --compile; found nothing
train --compile | --compile; expected one argument
train --data camvid --path {camvid} --bs 2 --accumulate 1000 | accumulate; 1000
train --workers 100000 | --workers; 100000
train --override epochs=3 | --override does not apply without --recipe
train --start {model} | --start does not apply without --recipe
train --steps 3 | --steps does not apply without --recipe
train --dry-run | --dry-run needs --recipe
train --dry-run --epochs 3 | --dry-run needs --recipe
train --data camvid --path {camvid} --dry-run | --dry-run needs --recipe
train --resume --dry-run | --dry-run needs --recipe
train --pretrained | no option '--pretrained'
train --batch-size 3 | no option '--batch-size'
train --recipe | --recipe; expected one argument
train --recipe '' | --recipe; found nothing
train --recipe encnet/pascal --path {camvid} | unknown recipe 'encnet/pascal'; did you mean
train --recipe encnet | unknown recipe 'encnet'
train --recipe {recipe} | needs --path, the folder of the data set pascal_context
train --recipe {recipe} --path {none} | PASCAL Context: no folder at; none
train --recipe {recipe} --path {file} | expected a folder
train --recipe {recipe} --path {camvid} | PASCAL Context: no images at
train --recipe {recipe} --path {context} --start {model} | begins anew, found start
train --recipe {recipe} --path {context} --override | --override; expected at least one argument
train --recipe {recipe} --path {context} --override epochs | --override: expected name=value, found epochs
train --recipe {recipe} --path {context} --override =3 | no field ''
train --recipe {recipe} --path {context} --override speed=9 | no field 'speed'; epochs
train --recipe {recipe} --path {context} --override name=x | no field 'name'; epochs
train --recipe {recipe} --path {context} --override epochs=many | epochs: expected; 'many'
train --recipe {recipe} --path {context} --override epochs=-1 | epochs: expected; -1
train --recipe {recipe} --path {context} --override epochs=0 | epochs: expected 1 or more
train --recipe {recipe} --path {context} --override epochs=1.5 | epochs: expected; 1.5
train --recipe {recipe} --path {context} --override epochs= | epochs: expected
train --recipe {recipe} --path {context} --override bs=0 | bs: expected; 0
train --recipe {recipe} --path {context} --override bs=-2 | bs: expected; -2
train --recipe {recipe} --path {context} --override lr=0 | lr: expected; 0
train --recipe {recipe} --path {context} --override lr=-1 | lr: expected; -1
train --recipe {recipe} --path {context} --override lr=nan | lr: expected; nan
train --recipe {recipe} --path {context} --override lr=inf | lr: expected; inf
train --recipe {recipe} --path {context} --override head_lr=nan | head_lr: expected; nan
train --recipe {recipe} --path {context} --override head_lr=-3 | head_lr: expected; -3
train --recipe {recipe} --path {context} --override momentum=1.5 | momentum: expected; 1.5
train --recipe {recipe} --path {context} --override momentum=-1 | momentum: expected; -1
train --recipe {recipe} --path {context} --override weight_decay=-1 | weight_decay: expected; -1
train --recipe {recipe} --path {context} --override crop=0 | crop: expected; 0
train --recipe {recipe} --path {context} --override crop=-3 | crop: expected; -3
train --recipe {recipe} --path {context} --override crop=100000 | crop: expected; 100000
train --recipe {recipe} --path {context} --override crop=(1,2,3) | crop: expected; (1,2,3)
train --recipe {recipe} --path {context} --override crop=big | crop: expected; 'big'
train --recipe {recipe} --path {context} --override scale=(2,1) | scale: expected; (2,1)
train --recipe {recipe} --path {context} --override scale=(0,1) | scale: expected; (0,1)
train --recipe {recipe} --path {context} --override scale=2 | scale: expected two numbers
train --recipe {recipe} --path {context} --override scales=() | scales: expected; ()
train --recipe {recipe} --path {context} --override scales=(0,) | scales: expected; (0,)
train --recipe {recipe} --path {context} --override scales=('a',) | scales: expected
train --recipe {recipe} --path {context} --override flip=2 | flip: expected; 2
train --recipe {recipe} --path {context} --override flip=nan | flip: expected; nan
train --recipe {recipe} --path {context} --override jitter=-1 | jitter: expected; -1
train --recipe {recipe} --path {context} --override rotate=-10 | rotate: expected; -10
train --recipe {recipe} --path {context} --override rotate=400 | rotate: expected; 400
train --recipe {recipe} --path {context} --override output_stride=0 | output_stride: expected; 0
train --recipe {recipe} --path {context} --override pairs_per_step=0 | pairs_per_step: expected; 0
train --recipe {recipe} --path {context} --override side=0 | side: expected; 0
train --recipe {recipe} --path {context} --override opt=adam | opt: expected sgd or adamw; 'adam'
train --recipe {recipe} --path {context} --override schedule=step | schedule: expected; 'step'
train --recipe {recipe} --path {context} --override combine=sum | combine: expected; 'sum'
train --recipe {recipe} --path {context} --override refine=crf | refine: expected; 'crf'
train --recipe {recipe} --path {context} --override mirrors=3 | mirrors: expected; '3'
train --recipe {recipe} --path {context} --override windows=maybe | windows: expected; 'maybe'
train --recipe {recipe} --path {context} --override pretrained=1 | pretrained: expected; '1'
train --recipe {recipe} --path {context} --override model_options=3 | model_options: expected dict
train --recipe {recipe} --path {context} --override model_options=[] | model_options: expected dict
train --recipe {recipe} --path {context} --override "model_options={'foo':1}" pretrained=no backbone=tiny bs=2 | no option 'foo'
train --recipe {recipe} --path {context} --override "data_options={'foo':1}" | no option 'foo'
train --recipe {recipe} --path {context} --override "model_options={1:2}" | model_options: expected
train --recipe {recipe} --path {context} --override model=fnc pretrained=no bs=2 | unknown model 'fnc'
train --recipe {recipe} --path {context} --override backbone=resnet81 pretrained=no bs=2 | unknown backbone 'resnet81'
train --recipe {recipe} --path {context} --override data=imagenet | data: no data set 'imagenet'; there are
train --recipe {recipe} --path {context} --override train_split=training backbone=tiny | unknown split 'training'
train --recipe {recipe} --path {context} --override valid_split=test backbone=tiny | unknown split 'test'
train --recipe {recipe} --path {context} --override bs=64 backbone=tiny | 2 training; batch of 64
train --recipe {recipe} --path {context} --override after=encnet | needs start, the model file of encnet
train --recipe {recipe} --path {context} --override miou=good | miou: expected; 'good'
train --recipe {recipe} --path {context} --epochs 3 | --epochs does not apply with --recipe; --override epochs
train --recipe {recipe} --path {context} --lr 3 | --lr does not apply with --recipe; --override lr
train --recipe {recipe} --path {context} --bs 3 | --bs does not apply with --recipe; --override bs
train --recipe {recipe} --path {context} --size 3 | --size does not apply with --recipe; --override crop
train --recipe {recipe} --path {context} --precision bf16 | --precision does not apply with --recipe
train --recipe {recipe} --path {context} --accumulate 2 | --accumulate does not apply with --recipe
train --recipe {recipe} --path {context} --channels-last | --channels-last does not apply with --recipe
train --recipe {recipe} --path {context} --compile eager | --compile does not apply with --recipe
train --recipe {recipe} --path {context} --weights imagenet | --weights does not apply with --recipe
train --recipe {recipe} --path {context} --data camvid | --data does not apply with --recipe
train --recipe {recipe} --path {context} --model fcn | --model does not apply with --recipe; --override model
train --recipe {recipe} --dry-run --epochs 3 | --epochs does not apply with --recipe and --dry-run
train --recipe {recipe} --dry-run --seed 3 | --seed does not apply with --recipe and --dry-run
train --recipe {recipe} --dry-run --resume | --resume does not apply with --recipe and --dry-run
train --recipe {recipe} --dry-run --start {model} | --start does not apply with --recipe and --dry-run
train --recipe {recipe} --dry-run --steps 2 | --steps does not apply with --recipe and --dry-run
train --recipe {recipe} --dry-run --workers 2 | --workers does not apply with --recipe and --dry-run
train --recipe {recipe} --dry-run --path {none} | PASCAL Context: no folder at
train --recipe {recipe} --dry-run --override crop=0 | crop: expected
train --recipe {recipe} --dry-run --override model=fnc | unknown model 'fnc'
train --recipe {recipe} --dry-run --override "model_options={'foo':1}" | foo
train --recipe {recipe} --dry-run --override backbone=resnet81 | unknown backbone
train --recipe {after} --path {context} | needs start, the model file of
train --recipe {after} --path {context} --start {none} --override backbone=tiny bs=2 | none
train --recipe {after} --path {context} --start {file} --override backbone=tiny bs=2 | file.txt
train --recipe {after} --path {context} --start {model} --override backbone=tiny bs=2 | does not fit
train --recipe {cifar} --path {folder} | cifar-10-batches-py
train --recipe {cifar} --path {folder} --override crop=33 | expected other values of
train --recipe {cifar} --path {folder} --override model=fcn | fcn
recipes --start | --start; expected one argument
recipes --start '' | --start; found nothing
recipes --start resnet | no recipe begins with 'resnet'
recipes encnet | unexpected word 'encnet'
recipes --paper encnet | no option '--paper'
cifar | cifar needs --path
cifar --path {none} | cifar-10-batches-py
cifar --path {folder} | data_batch_1: expected a file of CIFAR-10, found none
cifar --path {file} | file.txt
cifar --path {folder} --model fcn | --model; 'fcn'
cifar --path {folder} --model resnet --n-codes 8 | --n-codes does not apply with --model resnet
cifar --path {folder} --model seresnet --n-codes 16 | --n-codes does not apply with --model seresnet
cifar --path {folder} --n-codes 0 | --n-codes; from 1
cifar --path {folder} --lr 0 | --lr; '0'
cifar --path {folder} --weights x | no option '--weights'
experiment scene | unknown experiment 'scene'; did you mean scenes
experiment scenes scene | unknown experiment 'scene'
experiment '' | expected a word, found nothing
experiment --seeds 2 | --seeds does not apply without a name
experiment --variants fcn | --variants does not apply without a name
experiment --path {camvid} | --path does not apply without a name
experiment --out {folder} | --out does not apply without a name
experiment scenes --variants fnc | has no variant 'fnc'; fcn
experiment scenes --variants '' | --variants; found nothing
experiment scenes --variants fcn,,gap | has no variant ''
experiment scenes --variants 'fcn gap' | has no variant 'fcn gap'
experiment scenes --path {camvid} | 'scenes' does not use --path
experiment scenes --weights imagenet | 'scenes' does not use --weights
experiment camvid | needs the folder of the data set: --path
experiment camvid --path {camvid} | needs SqueezeNet's weights; --weights
experiment camvid --path {none} --weights {model} | no folder at
experiment camvid --path {folder} --weights {model} | codes.txt
experiment camvid --path {camvid} --weights {none} | 2 training; batch of 8
experiment scenes --seeds 0 | --seeds; from 1
experiment scenes --epochs 3 | no option '--epochs'
benchmark encodings | unknown benchmark 'encodings'; did you mean encoding
benchmark memory encodings | unknown benchmark 'encodings'
benchmark '' | expected a word, found nothing
benchmark --out {folder} | --out does not apply without a name
benchmark --rounds 3 | no option '--rounds'
benchmark --all | no option '--all'
evaluate | required: model
evaluate {model} {model} | unexpected word
evaluate {model} --data imagenet | no data set 'imagenet'
evaluate {model} --path {camvid} | --path does not apply to the embedded scenes
evaluate {model} --multiscale --path {camvid} | --path does not apply to the embedded scenes
evaluate {model} --min-photos 2 | --min-photos is for ccp
evaluate {model} --data camvid | --data camvid needs --path
evaluate {model} --multiscale --data camvid | --data camvid needs --path
evaluate {model} --data camvid --path {none} | no folder at
evaluate {model} --data camvid --path {camvid} | was trained on 3 other classes; camvid
evaluate {model} --multiscale --data camvid --path {camvid} | was trained on 3 other classes
evaluate {model} | was trained on 3 other classes; scenes
evaluate {model} --size 64,32 | scenes are square
evaluate {model} --pictures {folder} | --pictures does not apply without --submission
evaluate {model} --names {file} | --names does not apply without --submission
evaluate {model} --multiscale --names {file} | --names does not apply without --submission
evaluate {model} --submission coco | --submission; coco; voc
evaluate {model} --submission voc | needs --pictures
evaluate {model} --submission voc --pictures {none} | --pictures: no folder; none
evaluate {model} --submission voc --pictures {file} | --pictures: no folder
evaluate {model} --submission voc --pictures {folder} | expected a model of 21 classes, found 3
evaluate {model} --submission voc --pictures {folder} --data camvid | --data does not apply with --submission
evaluate {model} --submission voc --pictures {folder} --path {camvid} | --path does not apply with --submission
evaluate {model} --bs 3 | no option '--bs'
evaluate {model} --device gpu | --device: expected auto, cuda, cuda:0, mps or cpu, found 'gpu'
evaluate {model} --submission voc --pictures {pictures} --device cuda:99 | --device: this machine has no 'cuda:99', it has; cpu
predict {photo} --model {model} --device meta | --device: expected auto, cuda; found 'meta'
predict {photo} --model {model} --device '' | --device; found nothing
demo --device cuda: | --device: expected auto, cuda; found 'cuda:'
train --device tpu | --device: expected auto, cuda; found 'tpu'
train --recipe {recipe} --path {context} --device cpu:1 | --device: this machine has no 'cpu:1'
train --recipe {recipe} --dry-run --device cpu | --device does not apply with --recipe and --dry-run
cifar --path {folder} --device gpu | --device: expected auto, cuda; found 'gpu'
experiment scenes --device gpu | --device: expected auto, cuda; found 'gpu'
experiment --device cpu | --device does not apply without a name
benchmark memory --device gpu | --device: expected auto, cuda; found 'gpu'
benchmark --device cpu | --device does not apply without a name
models --device cpu | no option '--device'
evaluate {model} --submission voc --pictures {folder} --min-photos 3 | --min-photos does not apply with --submission
evaluate {voc21} --submission voc --pictures {empties} | expected one picture of voc or more, found none
evaluate {voc21} --submission voc --pictures {pictures} | expected a picture of voc, with a name as 2008_000006.jpg
evaluate {voc21} --submission voc --pictures {pictures} --names {none} | none
evaluate {voc21} --submission voc --pictures {pictures} --names {folder} | folder
evaluate {voc21} --submission voc --pictures {pictures} --names {pipe} | pipe
evaluate {voc21} --submission voc --pictures {pictures} --names {file} | pictures are not in
evaluate {voc21} --submission ade20k --pictures {pictures} | expected a model of 150 classes, found 21
evaluate {voc21} --submission cityscapes --pictures {pictures} | expected a model of 19 classes, found 21
evaluate {model} --scales 1,2 | no option '--scales'
evaluate --model {model} | no option '--model'
predict --model {model} | at least one picture
predict --images {photo} | no option '--images'
predict {photo} --model {model} --bs 3 | no option '--bs'
predict '' --model {model} | expected a word, found nothing
predict {none} --model {model} | no image at; none | 1
predict {file} --model {model} | file.txt is not a readable image | 1
predict {empty}.safetensors --model {model} | empty.safetensors is not a readable image | 1
predict {cutphoto} --model {model} | cut.png | 1
predict {pipe} --model {model} | is not a readable image; pipe | 1
predict {empties} --model {model} | no picture in the folder | 1
predict {folder}/*.gif --model {model} | no file fits the pattern | 1
predict /dev/null --model {model} | /dev/null is not a readable image | 1
predict {photo} | demo/model
predict {photo} --model | --model; expected one argument
export | required: model, out
export {model} | required: out
export {model} {out}.h5 | expected a file that ends in .onnx or .pt2
export {model} {out} | expected a file that ends in .onnx or .pt2
export {model} {folder} | expected a file that ends in .onnx or .pt2
export {model} {model} | expected a file that ends in .onnx or .pt2
export {model} {file}/x.pt2 | file.txt
export {model} {out}.onnx more | unexpected word 'more'
export {model} {out}.onnx --size 3 | no option '--size'
export {none}.safetensors {out}.onnx | none
export '' {out}.onnx | expected a word, found nothing
models fcn | unexpected word 'fcn'
models --all | no option '--all'
data camvid | unexpected word 'camvid'
data --check | --check; expected at least one argument
data --check camvid | expected the name of a data set and its folder, found camvid
data --check camvid {camvid} more | expected the name of a data set and its folder
data --check imagenet {camvid} | no data set 'imagenet'
data --check scenes {camvid} | 'scenes'
data --check camvid {none} | no folder at
data --check camvid {file} | expected a folder
data --check camvid {pipe} | expected a folder
data --check camvid '' | expected a word, found nothing
data --check camvid {camvid} --splits valid | unknown split 'valid'; train
data --check camvid {camvid} --splits train,,val | unknown split ''
data --check camvid {camvid} --splits test | 2 faults
data --check camvid {badlabels} | 1 fault
data --check camvid {cutimage} | 1 fault
data --check camvid {pipeimage} | 1 fault
data --check camvid {pipecodes} | codes.txt; pipe
data --check ade20k {camvid} | ADE20K: no list at
data --check camvid {camvid} --most 0 | --most; from 1
data --splits train | --splits does not apply without --check
data --most 3 | --most does not apply without --check
'''


def bad_commands():
    "(words, what the error must say, exit code) of each"
    for start, option, whole in NUMBERS:
        for value in NO_NUMBERS + WHOLE * whole:
            yield f'{start} --{option} {value}', [f'--{option}', value.strip("'")], 2
    for start in SIZES:
        for value in NO_SIZES:
            yield f'{start} {value}', [start.split()[-1], 'expected', value.strip("'")], 2
    for start in FOLDERS:
        for value, says in NO_FOLDERS:
            yield f'{start} {value}', [says], 2
    for start in MODELS:
        for value, says in NO_MODELS + NO_GRAPHS * ('export' not in start):
            yield start.replace('@', value), [says], 2
    for line in LINES.strip().splitlines():
        words, says, *code = line.split(' | ')
        yield words, says.split('; '), int(code[0]) if code else 2
