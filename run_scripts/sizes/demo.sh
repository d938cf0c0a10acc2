# The digit-scene demo on two CPU cores: small pictures, small dictionary, quick updates from scratch. Positions enter
# the encoder's input: so small a network learns them there much sooner than through attention biases alone.
ARCH=ofa_demo FREEZE_FLAGS=
BPE_DIR=$DATA_DIR/BPE
CAPTION_EPOCHS=${CAPTION_EPOCHS:-8} CAPTION_DROP_AFTER=1000000
CAPTION_BEAM=5 CAPTION_TEMPERATURE=1.0 CAPTION_LENPEN=1
SIZE_FLAGS="--patch-image-size=48 --num-workers=0 --dropout=0.0 --encoder-drop-path-rate=0.0 --decoder-drop-path-rate=0.0
    --code-dict-size=0 --num-bins=0 --entangle-position-embedding"
