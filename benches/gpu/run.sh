#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one go: tests, golden cases, kernel tables, a model of 8B shape by length, and a
# dense model on PyTorch beside it. Results go to the folder named, for benches/runs/.
#
#   benches/gpu/run.sh OUT [GOLDEN]
#
# REATTN, CONFORMANCE and SYNTH name programs that were built elsewhere, for a GPU machine without Rust, and TESTS test programs
# (`cargo test -p reattention-cuda --no-run` names them); without REATTN all are built here. LENGTHS and ROUNDS may be set. Needs 20 GB of disk for the weights, under $TMPDIR.
set -euo pipefail
out=${1:?usage: benches/gpu/run.sh OUT [GOLDEN]}
golden=${2:-testdata/golden}
cd "$(dirname "$0")/../.."
mkdir -p "$out"
lengths=${LENGTHS:-8k,32k,128k}
rounds=${ROUNDS:-5}

step() {
    echo "==> $*" >&2
    "$@"
}

if [ -z "${REATTN:-}" ]; then
    step cargo build --release -p reattention-cli -p conformance
    step cargo build --release -p reattention-model --example synth
    REATTN=target/release/reattn CONFORMANCE=target/release/conformance SYNTH=target/release/examples/synth
    step cargo test -p reattention-cuda
fi
for test in ${TESTS:-}; do
    step "$test" --nocapture | tee -a "$out/tests.txt"
done
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/gpu.csv"

# Right first.
step "$CONFORMANCE" "$golden" --backend reference,cuda | tee "$out/conformance.txt"
step "$REATTN" demo --device cuda | tee "$out/demo.txt"
if command -v compute-sanitizer >/dev/null 2>&1; then
    # Memory, then races in shared memory, on the smallest model that selects.
    for tool in memcheck racecheck; do
        step compute-sanitizer --tool "$tool" --error-exitcode 1 "$REATTN" demo --device cuda --tokens 4k --facts 1 >"$out/$tool.txt" 2>&1 ||
            { echo "==> $tool FOUND ERRORS: $out/$tool.txt" >&2; exit 1; }
    done
else
    echo "==> NOT CHECKED: memory and races (no compute-sanitizer)" >&2
fi

# Then fast.
step "$REATTN" bench --kernels --device cuda --rounds "$rounds" --json >"$out/kernels.json"
model=${TMPDIR:-/tmp}/llama-3.1-8b-random
[ -d "$model" ] || step "$SYNTH" llama-3.1-8b bf16 "$model"
for selector in exact boxes; do
    step "$REATTN" bench --device cuda --model "$model" --lengths "$lengths" --set "selector=$selector" --decode 32 --json >"$out/8b-$selector.json"
    # At depths that take too long, or too much memory, to read: a made-up cache, values in host memory.
    step "$REATTN" bench --device cuda --model "$model" --lengths 512k,1m --fill --kv-offload old --set "selector=$selector" --decode 32 --json \
        >"$out/8b-$selector-deep.json" || echo "==> NOT MEASURED: 512k and 1m with selector=$selector" >&2
done
if python3 -c "import torch" >/dev/null 2>&1; then
    step python3 benches/gpu/dense.py 8192 32768 131072 524288 1048576 >"$out/dense.json"
else
    echo "==> NOT MEASURED: the dense model (no PyTorch)" >&2
fi
echo "==> results in $out" >&2
