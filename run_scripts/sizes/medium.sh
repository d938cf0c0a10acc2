# The recipes of base.
. "$OFA_ROOT/run_scripts/sizes/base.sh"
ARCH=ofa_medium
