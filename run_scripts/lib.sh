# Shared by every run script (POSIX sh): source it, set what is the run's own, call ofa_train or ofa_evaluate.
#
# From the environment, with defaults for one machine:
#   GPUS_PER_NODE  processes per machine (number of GPUs, 1 without)     WORKER_CNT  machines (1)
#   RANK           number of this machine (0)                            MASTER_ADDR (localhost), MASTER_PORT
#   SIZE           demo, tiny, medium, base, large, huge                 PRECISION   fp16 (GPU), fp32 (CPU), bf16
#   DATA_DIR, CHECKPOINT_DIR, BPE_DIR, RESULTS_DIR, OUTPUT_DIR           OFA_PYTHON  interpreter (.venv, else python3)
#   DATA_FILES     data files in place of the recipe's, of any kind (docs/custom_data.md), with commas between them
#   NUM_WORKERS    processes that read data, per GPU (2)                 RUN_SUFFIX  end of a training run's name (none)
#   DRY_RUN=1      print the command instead of running it
#   OFA_NEWEST=1   set .venv up with the newest versions that the requirements allow, not those of constraints.txt

OFA_ROOT=$(cd "$(dirname "$0")" && while [ ! -f train.py ] && [ "$PWD" != / ]; do cd ..; done && pwd)
DATA_DIR=${DATA_DIR:-$OFA_ROOT/dataset}
CHECKPOINT_DIR=${CHECKPOINT_DIR:-$OFA_ROOT/checkpoints}
BPE_DIR=${BPE_DIR:-$OFA_ROOT/utils/BPE}
RESULTS_DIR=${RESULTS_DIR:-$OFA_ROOT/results}
OUTPUT_DIR=${OUTPUT_DIR:-$(cd "$(dirname "$0")" && pwd)} # logs and checkpoints of training go below it
VISIBLE_GPUS=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
GPUS_PER_NODE=${GPUS_PER_NODE:-$([ "$VISIBLE_GPUS" -gt 0 ] && echo "$VISIBLE_GPUS" || echo 1)}
PRECISION=${PRECISION:-$([ "$VISIBLE_GPUS" -gt 0 ] && echo fp16 || echo fp32)}

# What the demo pipelines change in every recipe: short runs are saved once an epoch.
DEMO_RUN_FLAGS='--weight-decay=0.0 --save-interval-updates=0 --no-epoch-checkpoints --keep-last-epochs=-1
    --log-interval=100 --log-format=simple'

# ofa_python: the interpreter every script runs with.
ofa_python() {
    if [ -n "${OFA_PYTHON:-}" ]; then echo "$OFA_PYTHON"
    elif [ -x "$OFA_ROOT/.venv/bin/python" ]; then echo "$OFA_ROOT/.venv/bin/python"
    else echo python3; fi
}

# ofa_setup [FILE...]: makes .venv and installs requirements.txt and the other requirement files named, in the versions
# of constraints.txt or, with OFA_NEWEST=1, the newest allowed; unless OFA_PYTHON names an interpreter or it is done.
ofa_setup() {
    [ -n "${OFA_PYTHON:-}" ] && return
    if [ ! -x "$OFA_ROOT/.venv/bin/python" ]; then
        for name in python3.12 python3.11 python3 python; do
            "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && break
            name=
        done
        [ -n "$name" ] || { echo "No Python 3.11 or 3.12 found: install one of them." >&2; exit 2; }
        "$name" -m venv "$OFA_ROOT/.venv" || { echo "$name cannot create .venv: install its venv module." >&2; exit 2; }
    fi
    for _file in requirements.txt "$@"; do
        ofa_wanted "$_file" | cmp -s - "$OFA_ROOT/.venv/$_file" || { ofa_install requirements.txt "$@" || exit 1; return; }
    done
}

# ofa_wanted FILE: what .venv/FILE says once this requirement file is installed as it is wanted now.
ofa_wanted() {
    cat "$OFA_ROOT/$1" && if [ "${OFA_NEWEST:-0}" = 1 ]; then echo "newest of $(date +%F)"
    else cat "$OFA_ROOT/constraints.txt"; fi
}

# ofa_install FILE...: the requirement files, together, into .venv.
ofa_install() (
    cd "$OFA_ROOT"
    echo "Installing $* into .venv (a few minutes) ..."
    _files=$*
    if [ "${OFA_NEWEST:-0}" = 1 ]; then set -- --upgrade --upgrade-strategy=eager; else set -- --constraint=constraints.txt; fi
    for _file in $_files; do set -- "$@" "--requirement=$_file"; done
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; then
        [ "${OFA_NEWEST:-0}" = 1 ] || echo "If a version in constraints.txt is not available, retry with OFA_NEWEST=1." >&2
        exit 1
    fi
    for _file in $_files; do ofa_wanted "$_file" > ".venv/$_file"; done
)

# ofa_ready: says what to run, and ends the script, where the interpreter lacks what every program needs.
ofa_ready() {
    "$(ofa_python)" -c 'import sys; from importlib.util import find_spec as f; sys.exit(not (f("torch") and f("fairseq")))' \
        2>/dev/null && return
    echo "$(ofa_python) has no torch and fairseq: run 'bash $OFA_ROOT/run_scripts/quickstart.sh' to set up .venv for" \
        "all scripts, or set OFA_PYTHON to an interpreter with requirements.txt installed." >&2
    exit 2
}

# ofa_quote TEXT: the text as a Python string for --model-overrides, whatever apostrophes and backslashes it has.
ofa_quote() { printf "'%s'" "$(printf %s "$1" | sed "s/\\\\/\\\\\\\\/g; s/'/'\"'\"'/g")"; }

# ofa_size DEFAULT: what the size adds to the command line -> ARCH, SIZE_FLAGS (training), SIZE_DATA_FLAGS (their part
# that zero-shot evaluation needs too), FREEZE_FLAGS, and recipe variables of run_scripts/sizes/.
ofa_size() {
    SIZE=${SIZE:-$1}
    if [ ! -f "$OFA_ROOT/run_scripts/sizes/$SIZE.sh" ]; then
        echo "SIZE=$SIZE is unknown: choose $(cd "$OFA_ROOT/run_scripts/sizes" && echo *.sh | sed 's/\.sh//g')." >&2
        exit 2
    fi
    FREEZE_FLAGS='--freeze-encoder-embedding --freeze-decoder-embedding' SIZE_FLAGS='' SIZE_DATA_FLAGS=''
    . "$OFA_ROOT/run_scripts/sizes/$SIZE.sh"
}

# ofa_scaled NUMBER LEAST: the number times OFA_DEMO_SCALE (1), but at least LEAST.
ofa_scaled() { awk -v n="$1" -v s="${OFA_DEMO_SCALE:-1}" -v least="$2" 'BEGIN { n = int(n * s); print(n < least ? least : n) }'; }

# ofa_once NAME COMMAND...: the command, unless it was done before; what it says goes to STEPS_DIR/NAME.log.
ofa_once() {
    _name=$1 _log=$STEPS_DIR/$1.log
    shift
    [ ! -f "$STEPS_DIR/$_name.done" ] || return 0
    echo "== $(date +%H:%M:%S) $_name"
    if ! "$@" > "$_log" 2>&1; then
        echo "$_name failed; see $_log:" >&2
        tail -n 5 "$_log" >&2
        exit 1
    fi
    touch "$STEPS_DIR/$_name.done"
}

# ofa_run PORT PROGRAM ARGS...: the program on this machine's processes, or only its command line.
ofa_run() {
    _port=${MASTER_PORT:-$1} _program=$2
    shift 2
    _nodes=${WORKER_CNT:-1}
    [ "$PRECISION" = fp32 ] || set -- "$@" "--$PRECISION"
    if [ "$GPUS_PER_NODE" -gt 1 ] || [ "$_nodes" -gt 1 ]; then
        set -- "$(ofa_python)" -m torch.distributed.run --nproc_per_node="$GPUS_PER_NODE" --nnodes="$_nodes" \
            --node_rank="${RANK:-0}" --master_addr="${MASTER_ADDR:-localhost}" --master_port="$_port" "$_program" "$@"
    else
        set -- "$(ofa_python)" "$_program" "$@" --distributed-world-size=1
    fi
    if [ -n "${DRY_RUN:-}" ]; then
        for _word in "$@"; do
            case $_word in *\'*) _word=$(printf %s "$_word" | sed "s/'/'\\\\''/g") ;; esac
            printf "'%s' " "$_word"
        done
        echo
    else
        ofa_ready
        "$@"
    fi
}

# ofa_train PORT RUN_NAME RESTORE_FILE DATA ARGS...: trains below OUTPUT_DIR; the same command resumes a run.
ofa_train() {
    _port=$1 _run=$2${RUN_SUFFIX:-} _restore=$3 _data=${DATA_FILES:-$4}
    shift 4
    _save_dir=${OUTPUT_DIR}/${RUN_KIND}checkpoints/$_run _log_dir=${OUTPUT_DIR}/${RUN_KIND}logs
    if [ ! -f "$_save_dir/checkpoint_last.pt" ]; then
        set -- --restore-file="$_restore" --reset-optimizer --reset-dataloader --reset-meters "$@"
    fi
    [ -n "${DRY_RUN:-}" ] || mkdir -p "$_save_dir" "$_log_dir"
    ofa_run "$_port" "$OFA_ROOT/train.py" "$_data" --user-dir="$OFA_ROOT/ofa_module" --bpe-dir="$BPE_DIR" --arch="$ARCH" \
        --save-dir="$_save_dir" --log-file="$_log_dir/$_run.log" --log-format="$([ -t 1 ] && echo tqdm || echo simple)" \
        --log-interval=10 --num-workers="${NUM_WORKERS:-2}" --num-bins=1000 --fixed-validation-seed=7 \
        --find-unused-parameters \
        --encoder-normalize-before --decoder-normalize-before --share-decoder-input-output-embed \
        --share-all-embeddings --layernorm-embedding --patch-layernorm-embedding --code-layernorm-embedding \
        --add-type-embedding --scale-attn --scale-fc --scale-heads --disable-entangle \
        --optimizer=adam --adam-betas='(0.9,0.999)' --adam-eps=1e-08 --weight-decay=0.01 --clip-norm=1.0 \
        --lr-scheduler=polynomial_decay --dropout=0.1 --attention-dropout=0.0 --resnet-drop-path-rate=0.0 \
        --maximize-best-checkpoint-metric "$@"
}

# ofa_evaluate PORT CHECKPOINT SUBSET RESULTS DATA OVERRIDES ARGS...: OVERRIDES = more entries of --model-overrides,
# paths among them through ofa_quote.
ofa_evaluate() {
    _port=$1 _checkpoint=$2 _subset=$3 _results=$4 _data=${DATA_FILES:-$5} _overrides=$6
    shift 6
    ofa_run "$_port" "$OFA_ROOT/evaluate.py" "$_data" --user-dir="$OFA_ROOT/ofa_module" --path="$_checkpoint" \
        --gen-subset="$_subset" --results-path="$_results" --log-format=simple --log-interval=10 --seed=7 \
        --num-workers="${NUM_WORKERS:-2}" \
        --model-overrides="{'data': $(ofa_quote "$_data"), 'bpe_dir': $(ofa_quote "$BPE_DIR"), $_overrides}" "$@"
}
