#!/usr/bin/env bash
# A GPU that torch cannot use (hidden by CUDA_VISIBLE_DEVICES=, a CPU build of torch, a driver that is too old): DEVICE=cuda says '`harness doctor` shows
# why', and DEVICE=auto trains on the CPU. Expected: doctor says why; a sweep says on what it trains. (A stand-in nvidia-smi plays the GPU.)
. "$(dirname "$0")/prelude.bash"
mkdir bin && printf '#!/bin/sh\necho "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0000)"\n' > bin/nvidia-smi && chmod +x bin/nvidia-smi; export PATH="$W/bin:$PATH"
weights; bad=""
"$PY" -c "import torch; raise SystemExit(torch.cuda.is_available())" || { echo "SKIP: here torch has a GPU"; exit 0; }
CUDA_VISIBLE_DEVICES= timeout 300 "$HARNESS" doctor >out 2>&1; grep CUDA out
grep -q "CUDA_VISIBLE_DEVICES" out || bad="$bad [CUDA_VISIBLE_DEVICES= is not named]"
timeout 300 "$HARNESS" doctor >out 2>&1; grep CUDA out
grep -qi "nvidia\|driver\|build" out || bad="$bad [nvidia-smi lists a GPU that torch does not see: not a word]"
[ -z "$bad" ] && pass "said" || fail "doctor: 'none; training runs on the CPU':$bad"
