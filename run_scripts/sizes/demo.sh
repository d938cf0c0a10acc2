# The digit-scene demo on two CPU cores: small images, small dictionary, quick updates from scratch. Positions enter
# the encoder's input: so small a model learns them there much sooner than through attention biases alone.
ARCH=ofa_demo FREEZE_FLAGS=
BPE_DIR=$OFA_ROOT/digits/BPE NUM_WORKERS=${NUM_WORKERS:-0}
SIZE_DATA_FLAGS='--patch-image-size=48 --code-dict-size=1024 --num-bins=65'
SIZE_FLAGS="$SIZE_DATA_FLAGS --dropout=0.0 --encoder-drop-path-rate=0.0 --decoder-drop-path-rate=0.0
    --entangle-position-embedding --ema-decay=0.99"
CAPTION_EPOCHS=${CAPTION_EPOCHS:-8} CAPTION_DROP_AFTER=1000000
CAPTION_BEAM=5 CAPTION_TEMPERATURE=1.0 CAPTION_LENPEN=1
VQA_SCHEDULE='--max-epoch=8 --warmup-ratio=0.06' VQA_RUN=8_0.06 VQA_DROP_PATH=0.0
REFCOCO_EPOCHS=8 REFCOCOG_EPOCHS=8 REFCOCO_LR=3e-4 REFCOCO_DROP_PATH=0.0
REFCOCO_SIZE_FLAGS=--max-image-size=64 # one location token per pixel, up to the size of pretraining's images
PRETRAIN_SIZE_FLAGS='--max-image-size=64 --code-image-size=32 --largest-short-side=52 --no-rand-augment --sample-patch-num=0'
SNLI_VE_EPOCHS=8 SNLI_VE_LR=3e-4 SNLI_VE_DROP_PATH=0.0
IMAGENET_SCHEDULE='--max-epoch=8 --warmup-ratio=0.06' IMAGENET_RUN=8_0.06
GIGAWORD_EPOCHS=8
VQGAN_DIR=${VQGAN_DIR:-$OFA_ROOT/checkpoints/ofa_demo_vqgan}
MAX_EPOCHS=${MAX_EPOCHS:-8} LRS=${LRS:-3e-4} UPDATE_FREQS=${UPDATE_FREQS:-1} # of GLUE's grid
