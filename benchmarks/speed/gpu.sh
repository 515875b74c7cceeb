#!/usr/bin/env bash
# Everything that has to be measured on a GPU, each stage within ten minutes, on a machine with Python 3.12, PyTorch 2.11 for CUDA and
# no network. From the repository's root:
#
#   benchmarks/speed/gpu.sh wheels          # where there is a network: what the machine lacks, into benchmarks/speed/wheels (4 MB)
#   benchmarks/speed/gpu.sh tests           # on the GPU: graphs against ordinary updates, the official numbers
#   benchmarks/speed/gpu.sh speed 80        # updates, acting, replay, the loop on Pong, an update's kernels; begun within 80 s
#   benchmarks/speed/gpu.sh compiled        # an update with torch.compile in the graph, in a process of its own
#   benchmarks/speed/gpu.sh convolutions    # those of one channel, in other forms
#   benchmarks/speed/gpu.sh first           # tests, speed, convolutions: look at these before the long runs
#   benchmarks/speed/gpu.sh learn           # float32 eager against everything on: the same task, three seeds each
#   benchmarks/speed/gpu.sh atari Boxing 9  # one game towards 2M frames, 9 minutes and an evaluation; then options of the script
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

case ${1:-} in
wheels)
    "$PYTHON" -m pip download -q --no-deps --only-binary :all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
        -d "$WHEELS" "${MISSING[@]}"
    ls -l "$WHEELS"
    ;;
tests)
    install
    timeout 90 "$PYTHON" -m pytest -q -p no:cacheprovider --timeout=40 tests/test_engine.py tests/test_golden.py \
        -k "(test_cuda or on_a_gpu or equals_official) and not cpu and not reference" 2>&1 | tee "$OUT/tests.log"
    ;;
speed)
    install
    timeout 590 "$PYTHON" -m benchmarks.speed.gpu "$OUT/speed.json" "${2:-500}" 2>&1 | tee "$OUT/speed.log"
    ;;
compiled)
    install
    timeout 200 "$PYTHON" -m benchmarks.speed update --config atari-gpu --device cuda --threads 8 --cuda-graphs \
        --precision bfloat16 --tf32 --compile --results "$OUT/speed.json" 2>&1 | tee "$OUT/compiled.log"
    ;;
convolutions)
    install
    timeout 60 "$PYTHON" -m benchmarks.speed.windows --device cuda --frames 2500 2>&1 | tee "$OUT/convolutions.log"
    ;;
first)
    bash benchmarks/speed/gpu.sh tests || echo "THE TESTS FAILED"
    bash benchmarks/speed/gpu.sh speed 80
    bash benchmarks/speed/gpu.sh convolutions
    ;;
learn)
    install
    timeout 590 "$PYTHON" -m benchmarks.engines --device cuda --out "$OUT" 2>&1 | tee "$OUT/learn.log"
    ;;
atari)
    install
    timeout 590 "$PYTHON" -m benchmarks.atari "${2:-Boxing}" --minutes "${3:-9}" --device cuda --out "$OUT" "${@:4}" 2>&1 |
        tee "$OUT/${2:-Boxing}.log"
    ;;
*)
    sed -n 2,14p benchmarks/speed/gpu.sh
    exit 2
    ;;
esac
