#!/bin/sh
# Images of the demo's test prompts, a contact sheet of the first 60 (image_gen.png), and how often their digits and
# colors can be read. CHECKPOINT names the trained model; other flags are passed through to evaluation.
set -e
. "$(dirname "$0")/../lib.sh"
export SIZE=demo
sh "$OFA_ROOT/run_scripts/image_gen/evaluate_image_gen.sh" --batch-size=25 --beam=1 --min-len=64 --max-len-b=64 \
    --sampling-topk=100 --temperature=0.7 --code-image-size=64 --constraint-range=2000,3024 "$@"
[ -z "${DRY_RUN:-}" ] || exit 0
cd "$OFA_ROOT"
"$(ofa_python)" -m digits.image_gen "$RESULTS_DIR/image_gen" "${STEPS_DIR:-$RESULTS_DIR}/image_gen.png"
