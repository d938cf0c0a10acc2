#!/bin/sh
# Images of the test prompts, the best of 24 by CLIP; with gt_stat.npz in the data folder also Inception score and FID.
# SIZE=tiny..huge (large). CHECKPOINT names another file than the released one, SUBSET another split than test (full).
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
data=$DATA_DIR/coco_image_gen_data vqgan=${VQGAN_DIR:-$CHECKPOINT_DIR/vqgan} clip=$CHECKPOINT_DIR/clip/ViT-B-16.pt
[ "$SIZE" != demo ] || clip='' # no CLIP: the first sample is the image
subset=${SUBSET:-test}
case $subset in test) file=$data/coco_vqgan_full_test.tsv ;; *) file=$data/coco_vqgan_$subset.tsv ;; esac
out=$RESULTS_DIR/image_gen

ofa_evaluate 4081 "${CHECKPOINT:-$CHECKPOINT_DIR/image_gen_${SIZE}_best.pt}" "$subset" "$out" "$file" \
    "'selected_cols': '0,2,1', 'clip_model_path': $(ofa_quote "$clip"), 'vqgan_model_path': $(ofa_quote "$vqgan/last.ckpt"), \
'vqgan_config_path': $(ofa_quote "$vqgan/model.yaml"), 'gen_images_path': $(ofa_quote "$out")" \
    --task=image_gen --batch-size=1 --seed=42 --log-interval=1 --beam=24 --min-len=1024 --max-len-a=0 \
    --max-len-b=1024 --sampling-topk=256 --temperature=1.0 --code-image-size=256 --constraint-range=50265,58457 "$@"
[ -z "${DRY_RUN:-}" ] && [ -f "$data/gt_stat.npz" ] || exit 0
gpu=$([ "$VISIBLE_GPUS" -eq 0 ] || echo 0)
"$(ofa_python)" "$OFA_ROOT/run_scripts/image_gen/inception_score.py" --path1 "$out/top1" --gpu "$gpu"
"$(ofa_python)" "$OFA_ROOT/run_scripts/image_gen/fid_score.py" --path1 "$out/top1" --path2 "$data/gt_stat.npz" \
    --gpu "$gpu" --batch-size 128
