# The recipes of large, but for the search of captions.
. "$OFA_ROOT/run_scripts/sizes/large.sh"
ARCH=ofa_huge
CAPTION_BEAM=10 CAPTION_TEMPERATURE=0.98 CAPTION_LENPEN=0.98
