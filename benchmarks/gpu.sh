#!/bin/sh
# The GPU's tests (memory against the dry run's among them), its throughput, LoRA, and what fit() adds to a step, in one
# call of under ten minutes on one H100:
#   sh benchmarks/gpu.sh [folder for the results]
# It uses PYTHON (python3), which needs torch with CUDA and triton, transformers, tokenizers, peft, pytorch-lightning,
# safetensors, numpy and pytest. Where there is no package index, carry a folder of wheels and name it in WHEELS:
#   hydra-core omegaconf antlr4-python3-runtime wandb (with their dependencies), accelerate for the Trainer, and trl with
#   datasets for benchmarks.lora. Without accelerate or trl that peer is left out, and the table says so.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
RESULTS=${1:-benchmarks/results}
if [ -n "${WHEELS:-}" ]; then
    "$PYTHON" -m pip install --quiet --no-index --find-links "$WHEELS" hydra-core omegaconf wandb accelerate
    "$PYTHON" -m pip install --quiet --no-index --find-links "$WHEELS" trl datasets || echo "benchmarks/gpu.sh: no trl"
fi
"$PYTHON" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "benchmarks/gpu.sh: torch sees no GPU.")'
export TOKENIZERS_PARALLELISM=false
status=0
timeout 130 "$PYTHON" -m pytest -q -m gpu tests || status=$?
"$PYTHON" -m benchmarks.train_throughput --profile gpu --rounds 3 --steps 20 --warmup 5 --minutes 4 --results "$RESULTS"
timeout 90 "$PYTHON" -m benchmarks.lora --profile gpu --rounds 3 --steps 10 --warmup 3 --results "$RESULTS" || status=$?
timeout 40 "$PYTHON" -m benchmarks.overhead --mode "bf16 eager" --rounds 3 --steps 20 || status=$?
exit "$status"
