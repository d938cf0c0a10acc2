"""Command lines of the released run scripts (their words, after the launcher's), and the port of each.

`RECIPES`: script -> (port, command lines); of the grids of GLUE only the first, `GLUE_GRIDS` has the rest.
"""

import re

SWITCHES = (
    "--encoder-normalize-before --decoder-normalize-before --share-decoder-input-output-embed --share-all-embeddings "
    "--layernorm-embedding --patch-layernorm-embedding --code-layernorm-embedding --add-type-embedding --scale-attn "
    "--scale-fc --scale-heads --disable-entangle"
)
OPTIMISATION = (
    "--optimizer=adam --adam-betas=(0.9,0.999) --adam-eps=1e-08 --weight-decay=0.01 --clip-norm=1.0 "
    "--lr-scheduler=polynomial_decay --dropout=0.1 --attention-dropout=0.0 --resnet-drop-path-rate=0.0 --num-bins=1000 "
    "--log-format=simple --log-interval=10 --fixed-validation-seed=7 --num-workers=0 --reset-optimizer "
    "--reset-dataloader --reset-meters --find-unused-parameters --fp16 --maximize-best-checkpoint-metric "
    "--user-dir=../../ofa_module --bpe-dir=../../utils/BPE"
)
EMA = "--uses-ema --store-ema --ema-fp32 --ema-decay=0.9999 --ema-start-update=0"
FREEZE = "--freeze-encoder-embedding --freeze-decoder-embedding"
EVERY_500 = "--save-interval=1 --validate-interval=1 --save-interval-updates=500 --validate-interval-updates=500"
BEST_ONLY = "--no-epoch-checkpoints --keep-best-checkpoints=1"
LAST_15 = "--save-interval=1 --validate-interval=1 --keep-last-epochs=15"
FOUR_BINS = "--beam=5 --min-len=4 --max-len-a=0 --max-len-b=4 --no-repeat-ngram-size=3"


def tsv(folder, *names):
    return ",".join(f"../../dataset/{folder}/{name}.tsv" for name in names)


def trained(port, size, save_dir, data, smoothing, drop_path, own):
    """A training script with the cross-entropy criterion."""
    return port, [
        f"{data} --arch=ofa_{size} --restore-file=../../checkpoints/ofa_{size}.pt --save-dir=./{save_dir} {SWITCHES} "
        f"{OPTIMISATION} --criterion=adjust_label_smoothed_cross_entropy --label-smoothing={smoothing} "
        f"--encoder-drop-path-rate={drop_path} --decoder-drop-path-rate={drop_path} {own}"
    ]


def evaluated(path, subset, results, data, own, **overrides):
    """One command of an evaluation script; without overrides it has no --model-overrides."""
    overrides = {"data": data, "bpe_dir": "../../utils/BPE", **overrides} if overrides else {}
    text = str(overrides).replace(" ", "")
    return (
        f"{data} --path=../../checkpoints/{path} --user-dir=../../ofa_module --log-format=simple --log-interval=10 "
        f"--seed=7 --gen-subset={subset} --results-path=../../results/{results} --fp16 --num-workers=0 {own}"
    ) + (f" --model-overrides={text}" if overrides else "")


def caption_training(port, size, epochs, drop_after):
    data = tsv("caption_data", "caption_stage1_train", "caption_val")
    return trained(
        port, size, f"stage1_checkpoints/{epochs}_0.06_{drop_after}", data, 0.1, 0.1,
        f"--task=caption --lr=1e-5 --max-epoch={epochs} --warmup-ratio=0.06 --batch-size=8 --update-freq=4 "
        f"--drop-worst-ratio=0.2 --drop-worst-after={drop_after} --max-src-length=80 --max-tgt-length=20 {FREEZE} "
        f"--patch-image-size=480 --selected-cols=0,4,2 --eval-cider {EVERY_500} {BEST_ONLY} --fp16-scale-window=512 "
        "--eval-cider-cached-tokens=../../dataset/caption_data/cider_cached_tokens/coco-valid-words.p "
        '--eval-args={"beam":5,"max_len_b":16,"no_repeat_ngram_size":3} --best-checkpoint-metric=cider',
    )  # fmt: skip


def caption_rewards(port, size, end_lr):
    """Stage 2; fairseq's --memory-efficient-fp16 implies --fp16, which our scripts name too."""
    words = "../../dataset/caption_data/cider_cached_tokens/coco"
    generation = '{"beam":5,"max_len_b":16,"no_repeat_ngram_size":3}'
    restored = "caption_stage1_best.pt" if size == "large" else f"caption_stage1_{size}_best.pt"
    return port, [
        f"{tsv('caption_data', 'caption_stage2_train', 'caption_val')} --arch=ofa_{size} {SWITCHES} {OPTIMISATION} "
        f"--restore-file=../../checkpoints/{restored} --save-dir=./stage2_checkpoints/1e-5_3 --dropout=0.0 "
        "--criterion=scst_reward_criterion --encoder-drop-path-rate=0.0 --decoder-drop-path-rate=0.0 --task=caption "
        f"--lr=1e-5 --end-learning-rate={end_lr} --max-epoch=3 --warmup-ratio=0.06 --batch-size=2 --update-freq=4 "
        f"--max-src-length=80 --max-tgt-length=20 {FREEZE} --patch-image-size=480 --selected-cols=1,4,2 --scst "
        f"--scst-cider-cached-tokens={words}-train-words.p --scst-args={generation} --eval-args={generation} "
        f"--eval-cider --eval-cider-cached-tokens={words}-valid-words.p --best-checkpoint-metric=cider {EVERY_500} "
        f"{BEST_ONLY} --memory-efficient-fp16 --fp16-scale-window=512"
    ]


def encouraging(recipe, own="", suffix="_el0.75"):
    """A recipe with the encouraging loss; of two equal flags the second counts."""
    port, (line,) = recipe
    line = re.sub(r"(--save-dir=\S+)", rf"\1{suffix}", line)
    return port, [f"{line} --criterion=adjust_label_smoothed_encouraging_loss --log-end=0.75 {own}".rstrip()]


def caption_evaluation(port, path, beam, temperature, lenpen):
    own = f"--task=caption --batch-size=16 --beam={beam} --max-len-b=16 --no-repeat-ngram-size=3 "
    own += f"--temperature={temperature} --lenpen={lenpen}"
    cols = {"eval_cider": False, "selected_cols": "1,4,2"}
    return port, [evaluated(path, "test", "caption", tsv("caption_data", "caption_test"), own, **cols)]


def vqa_training(port, size, name, schedule, drop_path):
    return trained(
        port, size, f"vqa_checkpoints/{name}_5e-5_480", tsv("vqa_data", "vqa_train", "vqa_val"), 0.1, drop_path,
        f"--task=vqa_gen --lr=5e-5 {schedule} --batch-size=4 --update-freq=4 --max-src-length=80 "
        f"--max-object-length=30 --max-tgt-length=30 --patch-image-size=480 --prompt-type=prev_output {FREEZE} "
        "--ans2label-file=../../dataset/vqa_data/trainval_ans2label.pkl --add-object --valid-batch-size=20 "
        f"--val-inference-type=allcand {EMA} --selected-cols=0,5,2,3,4 --best-checkpoint-metric=vqa_score {LAST_15} "
        "--fp16-scale-window=512",
    )  # fmt: skip


def vqa_evaluation(port, split, path, mode, own, candidates=True):
    overrides = {"selected_cols": "0,5,2,3,4"}
    if candidates:
        overrides["ans2label_file"] = "../../dataset/vqa_data/trainval_ans2label.pkl"
    if mode == "zeroshot":
        overrides = {}
    data = tsv("vqa_data", f"vqa_{split}")
    return port, [evaluated(path, split, f"vqa_{split}_{mode}", data, f"--task=vqa_gen {own}", **overrides)]


def vqa_ranking(port, size, own):
    return vqa_evaluation(port, "val", f"vqa_{size}_best.pt", "allcand", own)


VQA_BEAM = "--ema-eval --beam-search-vqa-eval --batch-size=16 --beam=5 --unnormalized --temperature=1.0"
VQA_RANKING = "--ema-eval --batch-size=8"
VQA_MACHINES = "--ema-eval --batch-size=4 --valid-batch-size=20"


def refcoco_training(port, dataset, size, lr, epochs, drop_path):
    data = tsv(f"{dataset}_data", f"{dataset}_train", f"{dataset}_val")
    return trained(
        port, size, f"{dataset}_checkpoints/{epochs}_{lr}_512", data, 0.1, drop_path,
        f"--task=refcoco --lr={lr} --max-epoch={epochs} --warmup-ratio=0.06 --batch-size=4 --update-freq=8 "
        "--max-src-length=80 --max-tgt-length=20 --patch-image-size=512 --selected-cols=0,4,2,3 --eval-acc "
        '--eval-args={"beam":5,"min_len":4,"max_len_a":0,"max_len_b":4} --best-checkpoint-metric=score '
        f"{EVERY_500} {BEST_ONLY} --fp16-scale-window=512",
    )  # fmt: skip


def refcoco_evaluation(port, size):
    splits = {"refcoco": "val testA testB", "refcocoplus": "val testA testB", "refcocog": "val test"}
    own = f"--task=refcoco --batch-size=16 {FOUR_BINS}"
    return port, [
        evaluated(
            f"{name}_{size}_best.pt", f"{name}_{split}", name, tsv(f"{name}_data", f"{name}_{split}"), own,
            selected_cols="0,4,2,3",
        )
        for name, of_set in splits.items()
        for split in of_set.split(" ")
    ]  # fmt: skip


def snli_ve_training(port, size, lr, epochs, drop_path):
    return trained(
        port, size, f"checkpoints/{epochs}_{lr}", tsv("snli_ve_data", "snli_ve_train", "snli_ve_dev"), 0.0, drop_path,
        f"--task=snli_ve --lr={lr} --max-epoch={epochs} --warmup-ratio=0.06 --batch-size=4 --update-freq=8 "
        "--max-src-length=80 --max-tgt-length=20 --patch-image-size=480 --prompt-type=prev_output --add-caption "
        f"--selected-cols=0,2,3,4,5 --best-checkpoint-metric=snli_score {EVERY_500} --keep-best-checkpoints=1 "
        "--fp16-scale-window=512",
    )  # fmt: skip


def snli_ve_evaluation(port, split, path):
    own, data = "--task=snli_ve --batch-size=8", tsv("snli_ve_data", f"snli_ve_{split}")
    return port, [evaluated(path, split, "snli_ve", data, own, selected_cols="0,2,3,4,5")]


def glue_training(port, task, batch, frequency, validate_every, metric, cols):
    """The first of the grid."""
    return trained(
        port, "large", f"checkpoints/{task}/5_1e-4_{frequency}", tsv("glue_data", f"{task}_train", f"{task}_dev"),
        0.0, 0.1,
        f"--task={task} --lr=1e-4 --max-epoch=5 --warmup-ratio=0.06 --batch-size={batch} --update-freq={frequency} "
        "--max-src-length=512 --max-tgt-length=30 --prompt-type=src --fp16-init-scale=16 --fp16-scale-window=512 "
        f"--keep-best-checkpoints=1 --save-interval=100000 --save-interval-updates=100000 --validate-interval=1 "
        f"--validate-interval-updates={validate_every} --best-checkpoint-metric={metric} --selected-cols={cols}",
    )  # fmt: skip


def image_gen_training(port, name, restored, drop_path, results, own):
    """Our scripts name the default --resnet-drop-path-rate too; stage 2's --restore-file was filled in by hand."""
    models = "../../checkpoints/vqgan/last.ckpt --vqgan-config-path=../../checkpoints/vqgan/model.yaml"
    return port, [
        f"{tsv('coco_image_gen_data', 'coco_vqgan_train', 'coco_vqgan_dev')} --arch=ofa_large {SWITCHES} "
        f"{OPTIMISATION} --restore-file={restored} --save-dir=./image_gen_checkpoints/{name} --task=image_gen "
        f"--max-src-length=64 --max-tgt-length=1024 --encoder-drop-path-rate={drop_path} "
        f"--decoder-drop-path-rate={drop_path} "
        "--code-image-size=256 --constraint-range=50265,58457 --selected-cols=0,2,1 --batch-size-valid=1 "
        f'--eval-args={{"beam":24,{CODES}}} --vqgan-model-path={models} --keep-last-epochs=15 '
        f"--clip-model-path=../../checkpoints/clip/ViT-B-16.pt --gen-images-path=../../results/{results} "
        f"--best-checkpoint-metric=score --fp16-scale-window=256 {own}"
    ]


CODES = '"min_len":1024,"max_len_a":0,"max_len_b":1024,"sampling_topk":256,"temperature":1.0'
IMAGENET = "../../dataset/imagenet_1k_data/class2label_new.pkl"
RECIPES = {
    "train_caption_stage1.sh": caption_training(1051, "large", 2, 2500),
    "train_caption_stage1_base.sh": caption_training(1061, "base", 5, 6000),
    "train_caption_stage1_el.sh": encouraging(caption_training(1051, "large", 2, 2500), "--drop-worst-ratio=0.05"),
    "train_caption_stage1_el_db.sh": encouraging(
        caption_training(1051, "large", 2, 2500),
        "--drop-worst-ratio=0.05 --drop-best-ratio=0.05 --drop-best-after=2500",
        suffix="_dwdb_el0.75",
    ),
    "train_caption_stage2.sh": caption_rewards(1052, "large", "2e-7"),
    "train_caption_stage2_base.sh": caption_rewards(1062, "base", "0"),
    "evaluate_caption.sh": caption_evaluation(1081, "caption_large_best_clean.pt", 5, 1.0, 1),
    "evaluate_caption_base.sh": caption_evaluation(1091, "caption_base_best.pt", 5, 1.0, 1),
    "evaluate_caption_huge.sh": caption_evaluation(1083, "caption_huge_best.pt", 10, 0.98, 0.98),
    "train_vqa_distributed.sh": vqa_training(
        8214, "large", "40000_1000", "--total-num-update=40000 --max-update=40000 --warmup-updates=1000", 0.2
    ),
    "train_vqa_base_distributed.sh": vqa_training(8314, "base", "15_0.04", "--max-epoch=15 --warmup-ratio=0.04", 0.1),
    "evaluate_vqa_allcand.sh": vqa_ranking(8081, "large", VQA_RANKING),
    "evaluate_vqa_base_allcand.sh": vqa_ranking(8081, "base", VQA_RANKING),
    "evaluate_vqa_allcand_distributed.sh": vqa_ranking(8216, "large", VQA_MACHINES),
    "evaluate_vqa_base_allcand_distributed.sh": vqa_ranking(8316, "base", VQA_MACHINES),
    "evaluate_vqa_beam.sh": vqa_evaluation(8082, "val", "vqa_large_best.pt", "beam", VQA_BEAM),
    "evaluate_vqa_beam_base.sh": vqa_evaluation(8182, "val", "vqa_base_best.pt", "beam", VQA_BEAM),
    "evaluate_vqa_unconstrained.sh": vqa_evaluation(
        8082, "test", "free.pt", "unconstrained", VQA_BEAM, candidates=False
    ),
    "evaluate_vqa_zeroshot.sh": vqa_evaluation(
        8082, "val", "ofa_large.pt", "zeroshot",
        "--zero-shot --batch-size=8 --beam=20 --unnormalized --temperature=1.0 --selected-cols=0,5,2,3,4 "
        "--bpe-dir=../../utils/BPE --patch-image-size=480 --prompt-type=none",
    ),
    "train_refcoco.sh": refcoco_training(6051, "refcoco", "large", "3e-5", 10, 0.2),
    "train_refcocoplus.sh": refcoco_training(6053, "refcocoplus", "large", "3e-5", 10, 0.2),
    "train_refcocog.sh": refcoco_training(6052, "refcocog", "large", "3e-5", 10, 0.2),
    "train_refcoco_base.sh": refcoco_training(6061, "refcoco", "base", "5e-5", 10, 0.1),
    "train_refcocoplus_base.sh": refcoco_training(6063, "refcocoplus", "base", "5e-5", 10, 0.1),
    "train_refcocog_base.sh": refcoco_training(6062, "refcocog", "base", "5e-5", 12, 0.1),
    "train_refcoco_el.sh": encouraging(refcoco_training(6051, "refcoco", "large", "3e-5", 10, 0.2)),
    "train_refcocoplus_el.sh": encouraging(refcoco_training(6053, "refcocoplus", "large", "3e-5", 10, 0.2)),
    "train_refcocog_el.sh": encouraging(refcoco_training(6052, "refcocog", "large", "3e-5", 10, 0.2)),
    "evaluate_refcoco.sh": refcoco_evaluation(6081, "large"),
    "evaluate_refcoco_base.sh": refcoco_evaluation(6091, "base"),
    "evaluate_refcoco_zeroshot.sh": (6081, [
        evaluated(
            "ofa_large.pt", "refcoco_val", "refcoco", tsv("refcoco_data", "refcoco_val"),
            f"--task=refcoco --zero-shot --batch-size=16 {FOUR_BINS} --bpe-dir=../../utils/BPE "
            "--selected-cols=0,4,2,3 --patch-image-size=480",
        )
    ]),
    "train_snli_ve.sh": snli_ve_training(7051, "large", "2e-5", 6, 0.2),
    "train_snli_ve_base.sh": snli_ve_training(7061, "base", "5e-5", 5, 0.1),
    "evaluate_snli_ve.sh": snli_ve_evaluation(7081, "dev", "snli_ve_large_best.pt"),
    "evaluate_snli_ve_base.sh": snli_ve_evaluation(7091, "dev", "snli_ve_base_best.pt"),
    "evaluate_snli_ve_zeroshot.sh": (6081, [
        evaluated(
            "ofa_base.pt", "snli_ve_zeroshot", "snli_ve", tsv("snli_ve_data", "snli_ve_dev"),
            "--task=snli_ve --zero-shot --batch-size=16 --bpe-dir=../../utils/BPE --selected-cols=0,2,3,4,5 "
            "--patch-image-size=384 --max-src-length=80 --prompt-type=prev_output",
        )
    ]),
    "train_imagenet_distributed.sh": trained(
        8514, "large", "imagenet_1k_checkpoints/160000_1000_5e-5_480",
        tsv("imagenet_1k_data", "imagenet_1k_train", "imagenet_1k_val_subset"), 0.1, 0.1,
        "--task=image_classify --lr=5e-5 --total-num-update=160000 --max-update=160000 --warmup-updates=1000 "
        "--batch-size=4 --update-freq=4 --max-src-length=128 --max-tgt-length=30 --patch-image-size=480 "
        f"--imagenet-default-mean-and-std {FREEZE} --ans2label-file={IMAGENET} --valid-batch-size=20 "
        f"--selected-cols=0,2 --best-checkpoint-metric=score {LAST_15} --fp16-scale-window=512",
    ),
    "evaluate_imagenet.sh": (8087, [
        evaluated(
            "imagenet_1k_large_best.pt", "val", "imagenet_1k_val", tsv("imagenet_1k_data", "imagenet_1k_val"),
            "--task=image_classify --batch-size=8", selected_cols="0,2", ans2label_file=IMAGENET,
        )
    ]),
    "train_image_gen_stage1_distributed.sh": image_gen_training(
        8214, "40000_2000_1e-3", "../../checkpoints/ofa_large.pt", 0.1, "image_gen_stage1",
        "--criterion=adjust_label_smoothed_cross_entropy --label-smoothing=0.0 --lr=1e-3 --total-num-update=40000 "
        "--max-update=40000 --warmup-updates=2000 --batch-size=4 --update-freq=4 --save-interval=3 "
        "--validate-interval=3",
    ),
    "train_image_gen_stage2_distributed.sh": image_gen_training(
        8215, "5000_0_1e-6", "./image_gen_checkpoints/ofa_large_40000_2000_1e-3/checkpoint_last.pt", 0.0,
        "image_gen_stage2",
        f'--criterion=clip_scst_reward_criterion --scst --scst-args={{"beam":5,{CODES}}} --dropout=0.0 --freeze-resnet '
        "--lr=1e-6 --total-num-update=5000 --max-update=5000 --warmup-updates=0 --batch-size=1 --update-freq=1 "
        "--save-interval=1 --validate-interval=1 --save-interval-updates=200 --validate-interval-updates=200",
    ),
    "evaluate_image_gen.sh": (4081, [
        evaluated(  # the released one has no --results-path
            "image_gen_large_best.pt", "test", "image_gen", tsv("coco_image_gen_data", "coco_vqgan_full_test"),
            "--task=image_gen --batch-size=1 --seed=42 --log-interval=1 --beam=24 --min-len=1024 --max-len-a=0 "
            "--max-len-b=1024 --sampling-topk=256 --temperature=1.0 --code-image-size=256 "
            "--constraint-range=50265,58457",
            selected_cols="0,2,1", clip_model_path="../../checkpoints/clip/ViT-B-16.pt",
            vqgan_model_path="../../checkpoints/vqgan/last.ckpt",
            vqgan_config_path="../../checkpoints/vqgan/model.yaml", gen_images_path="../../results/image_gen",
        )
    ]),
    "train_gigaword.sh": trained(
        2051, "large", "checkpoints/6_1e-4_0.2", tsv("gigaword_data", "gigaword_train", "gigaword_dev"), 0.1, 0.1,
        "--task=gigaword --lr=1e-4 --max-epoch=6 --warmup-ratio=0.06 --batch-size=64 --update-freq=2 "
        "--max-src-length=512 --max-tgt-length=64 --noise-ratio=0.2 --eval-rouge --eval-print-samples "
        '--eval-args={"beam":6,"lenpen":0.7,"max_len_b":32,"no_repeat_ngram_size":3} --selected-cols=0,1 '
        "--best-checkpoint-metric=rougeL_f1 --save-interval=1 --validate-interval=1 --save-interval-updates=2500 "
        f"--validate-interval-updates=2500 {BEST_ONLY} --fp16-scale-window=512",
    ),
    "evaluate_gigaword.sh": (2081, [
        evaluated(
            "gigaword_large_best.pt", "test", "gigaword", tsv("gigaword_data", "gigaword_test"),
            "--task=gigaword --batch-size=32 --beam=6 --lenpen=0.7 --max-len-b=32 --no-repeat-ngram-size=3",
            selected_cols="0,1",
        )
    ]),
    "train_cola.sh": glue_training(3051, "cola", 16, 4, 10, "mcc", "1,2"),
    "train_mnli.sh": glue_training(3052, "mnli", 8, 4, 1000, "acc", "0,1,2"),
    "train_mrpc.sh": glue_training(3053, "mrpc", 16, 4, 10, "acc", "0,1,2"),
    "train_qnli.sh": glue_training(3054, "qnli", 8, 4, 500, "acc", "1,2,3"),
    "train_qqp.sh": glue_training(3055, "qqp", 8, 4, 1000, "acc", "3,4,5"),
    "train_rte.sh": glue_training(3056, "rte", 8, 8, 10, "acc", "1,2,3"),
    "train_sst2.sh": glue_training(3057, "sst2", 16, 2, 50, "acc", "0,1"),
}  # fmt: skip
EPOCHS, RATES = (5, 7, 10), ("1e-4", "7e-5", "6e-5", "5e-5", "3e-5")
GLUE_GRIDS = {  # --max-epoch, --lr, --update-freq
    "cola": (EPOCHS, RATES, (4, 2, 1)),
    "mnli": (EPOCHS, RATES, (4, 2)),
    "mrpc": (EPOCHS, RATES, (4, 2, 1)),
    "qnli": (EPOCHS, RATES, (4, 2)),
    "qqp": (EPOCHS, RATES, (4, 2)),
    "rte": (EPOCHS, RATES, (8, 4, 2)),
    "sst2": (EPOCHS, RATES, (2, 1)),
}
