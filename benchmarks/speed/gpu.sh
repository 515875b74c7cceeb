#!/usr/bin/env bash
# Everything that has to be measured on a GPU, each stage within ten minutes, on a machine with Python 3.12, PyTorch 2.11 for CUDA and
# no network. From the repository's root:
#
#   benchmarks/speed/gpu.sh wheels          # where there is a network: what the machine lacks, into benchmarks/speed/wheels (15 MB)
#   benchmarks/speed/gpu.sh tests           # on the GPU: CUDA tests, golden numbers
#   benchmarks/speed/gpu.sh speed           # updates, acting, replay, the loop on Pong
#   benchmarks/speed/gpu.sh learn           # float32 eager against everything on: the same task, three seeds each
#   benchmarks/speed/gpu.sh atari Boxing    # one game towards 2M frames in ten minutes
#
# OUT (default: gpu-results) receives logs and results; PYTHON (default: python3) has PyTorch.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
OUT=$(mkdir -p "${OUT:-gpu-results}" && cd "${OUT:-gpu-results}" && pwd)
WHEELS=benchmarks/speed/wheels
SITE=${SITE:-/tmp/sb3-dreamer-site}
MISSING=(stable-baselines3 sb3-contrib gymnasium farama-notifications ale-py)

install() {
    [ -d "$SITE" ] || "$PYTHON" -m pip install -q --no-index --find-links "$WHEELS" --no-deps --target "$SITE" "${MISSING[@]}"
    export PYTHONPATH="$PWD:$SITE" SDL_VIDEODRIVER=dummy
    "$PYTHON" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())' | tee "$OUT/machine.txt"
}

measure() {
    "$PYTHON" -m benchmarks.speed "$@" --device cuda --results "$OUT/speed.json" 2>&1 | tee -a "$OUT/speed.log"
}

case ${1:-} in
wheels)
    "$PYTHON" -m pip download -q --no-deps --only-binary :all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
        -d "$WHEELS" "${MISSING[@]}"
    ls -l "$WHEELS"
    ;;
tests)
    install
    "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_engine.py tests/test_golden.py 2>&1 | tee "$OUT/tests.log"
    ;;
speed)
    install
    measure update --config atari-gpu
    measure update --config atari-gpu --precision bfloat16
    measure update --config atari-gpu --cuda-graphs
    measure update --config atari-gpu --cuda-graphs --precision bfloat16
    measure act --config atari-gpu
    measure act --config atari-gpu --cuda-graphs
    measure replay --config atari-gpu
    measure loop --config atari-gpu --envs 8 --cuda-graphs --precision bfloat16
    measure loop --config atari-gpu --envs 8 --cuda-graphs --precision bfloat16 --overlap
    ;;
learn)
    install
    timeout 590 "$PYTHON" -m benchmarks.engines --device cuda --out "$OUT" 2>&1 | tee "$OUT/learn.log"
    ;;
atari)
    install
    timeout 590 "$PYTHON" -m benchmarks.atari "${2:-Boxing}" --minutes 9 --device cuda --out "$OUT" 2>&1 | tee "$OUT/${2:-Boxing}.log"
    ;;
*)
    sed -n '2,14p' "$0"
    exit 2
    ;;
esac
