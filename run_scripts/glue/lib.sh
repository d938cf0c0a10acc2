# The seven tasks of GLUE, a row each; the scripts of this folder source it after ../lib.sh.
#
# ofa_glue TASK: the task's row -> GLUE_BATCH, GLUE_UPDATE_FREQS, GLUE_VALIDATE (updates between validations),
# GLUE_METRIC, GLUE_COLS, GLUE_PORT.
ofa_glue() {
    while read -r _task _gpus GLUE_BATCH GLUE_UPDATE_FREQS GLUE_VALIDATE GLUE_METRIC GLUE_COLS GLUE_PORT; do
        [ "$_task" = "$1" ] && return
    done <<'TABLE'
cola  2  16  4,2,1  10    mcc  1,2    3051
mnli  8  8   4,2    1000  acc  0,1,2  3052
mrpc  2  16  4,2,1  10    acc  0,1,2  3053
qnli  8  8   4,2    500   acc  1,2,3  3054
qqp   8  8   4,2    1000  acc  3,4,5  3055
rte   2  8   8,4,2  10    acc  1,2,3  3056
sst2  4  16  2,1    50    acc  0,1    3057
TABLE
    echo "'$1' is not a GLUE task: choose cola, mnli, mrpc, qnli, qqp, rte or sst2." >&2
    exit 2
}
