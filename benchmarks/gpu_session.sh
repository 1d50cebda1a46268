#!/usr/bin/env bash
# All that a machine with a GPU is asked for: benchmarks/gpu_session.sh FOLDER [PART…], from the root of the repository.
# Logs and JSON go to FOLDER; a part that fails or takes too long does not stop the others. Nothing is installed.
# PARTs, of those below, where time is short (default: all). PYTHON: the interpreter (default: python3).
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?usage: benchmarks/gpu_session.sh FOLDER [PART…]}" && cd "$1" && pwd)
shift
chosen=" $* "
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}  # examples lie in a folder of their own, and minigrad is not installed
export NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS=0 PYTHONUNBUFFERED=1 MPLBACKEND=Agg
failed=()

part() { # NAME SECONDS COMMAND…: into FOLDER/NAME.log; interrupted when it is late, so that pytest says what it has seen
    local name=$1 limit=$2 code=0
    shift 2
    [[ $chosen = "  " || $chosen = *" $name "* ]] || return 0
    echo "== $name: $* (at most $limit s)"
    timeout --signal=INT --kill-after=20 "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
    tail -n 5 "$out/$name.log"
    [ $code -eq 0 ] && return
    [ $code -eq 124 ] && echo "-- $name: out of time" || echo "-- $name: exit code $code"
    failed+=("$name")
}

sanitized=(tests/test_ops.py tests/test_conv.py tests/test_pool.py tests/test_indexing.py tests/test_spectral.py tests/test_optim.py)

part gpu 60 nvidia-smi
part packages 120 "$python" -m pip list
part info 120 "$python" -m minigrad info
part usable 120 "$python" -m minigrad info --device cuda
part tests "${TESTS_S:-1200}" "$python" -m pytest -q --device cuda
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        part "$tool" "${SANITIZER_S:-900}" compute-sanitizer --tool "$tool" --error-exitcode 9 --log-file "$out/$tool.found" \
            "$python" -m pytest -q -x --device cuda -p no:cacheprovider "${sanitized[@]}"
    done
elif [[ $chosen = "  " ]]; then
    echo "== compute-sanitizer is not installed: left out" | tee "$out/sanitizer.log"
fi
part study 300 "$python" -m minigrad study --quick --device cuda --out "$out/study"
part example 300 "$python" examples/sngan_digits.py --device cuda --out "$out/sngan_digits.png"
part benchmarks "${BENCHMARKS_S:-1500}" "$python" -m benchmarks.cuda --json "$out/cuda.json"

echo "== done: ${#failed[@]} failed${failed[*]:+ (${failed[*]})}; logs in $out"
[ ${#failed[@]} -eq 0 ]
