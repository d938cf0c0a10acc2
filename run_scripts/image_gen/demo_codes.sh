#!/bin/sh
# The demo's text-to-image files, in the released order of columns, from its images: `python -m data.demo dataset
# --tasks image_gen` writes those. A file of codes that is there already is kept.
set -e
. "$(dirname "$0")/../lib.sh"
SIZE=demo
ofa_size demo
ofa_ready
cd "$OFA_ROOT"
for split in train dev full_test; do
    file=$DATA_DIR/coco_image_gen_data/pictures_$split.tsv
    [ -f "$file.codes" ] || "$(ofa_python)" -m utils.image_codes encode --file "$file" --selected-cols 0,1,2,3 --outputs "$file.codes" \
        --code-image-size 64 --vqgan-model-path "$VQGAN_DIR/last.ckpt" --vqgan-config-path "$VQGAN_DIR/model.yaml"
    awk -F '\t' -v OFS='\t' '{ print $1, $4, $3 }' "$file.codes" > "$(dirname "$file")/coco_vqgan_$split.tsv"
done
