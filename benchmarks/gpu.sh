#!/usr/bin/env bash
# What a GPU makes of the update: the tests that need CUDA, and gradient steps a second with and without the recorded update.
#
#     benchmarks/gpu.sh PYTHON OUT
#
# PYTHON has hipi_sb3 with its extras and a PyTorch with CUDA; JSON goes to the folder OUT. It has not run on a GPU yet.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${1:?which Python}" out="${2:?folder for the results}"
mkdir -p "$out"
"$python" -c 'import torch; assert torch.cuda.is_available(), "This PyTorch sees no GPU."; print(torch.cuda.get_device_name())' | tee "$out/device.txt"
timeout 180 "$python" -m pytest -q tests/test_fast_sac.py tests/test_scores.py 2>&1 | tee "$out/tests.txt"
for batch_size in 256 1024 4096; do
    timeout 90 "$python" benchmarks/gradient_speed.py --device cuda --batch-size "$batch_size" --turns 7 \
        --json "$out/gradient_speed_$batch_size.json"
done
