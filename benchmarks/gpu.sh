#!/usr/bin/env bash
# What a GPU makes of the update: the tests that need CUDA, gradient steps a second with and without the recorded update, and
# what limits them. Takes three to five minutes; a part that fails does not stop the others, and is the exit status.
#
#     benchmarks/gpu.sh PYTHON OUT
#
# PYTHON has hipi_sb3 with pytest and a PyTorch with CUDA; JSON goes to the folder OUT.
set -uo pipefail
cd "$(dirname "$0")/.."
python="${1:?which Python}" out="${2:?folder for the results}"
failed=0
mkdir -p "$out"
"$python" -c 'import torch; assert torch.cuda.is_available(), "This PyTorch sees no GPU."; print(torch.cuda.get_device_name())' \
    | tee "$out/device.txt" || exit 1
timeout 120 "$python" -m pytest -q tests/networks/test_fast_sac.py tests/relabel/test_tensor_forms.py \
    -k "cuda or gpu or record" -rs 2>&1 | tee "$out/tests.txt" || failed=1
for batch_size in 256 1024 4096; do
    timeout 90 "$python" benchmarks/gradient_speed.py --device cuda --batch-size "$batch_size" --turns 7 \
        --json "$out/gradient_speed_$batch_size.json" || failed=1
done
timeout 90 "$python" benchmarks/gpu_limit.py --json "$out/gpu_limit.json" || failed=1
exit $failed
