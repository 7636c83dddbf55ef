#!/bin/sh
# The whole demo, as one would type it. Run it again: what is done is not done twice.
set -eu
cd "$(dirname "$0")"
export PYEXPD_CONFIG="$PWD/pyexpd.yml"

say() {
    printf '\n$ %s\n' "$*"
    "$@"
}
say pyexpd fill
say pyexpd run --until-empty
say pyexpd status
say pyexpd export --pivot "dataset x kernel" --value test_accuracy --best max
