#!/usr/bin/env bash
# Check and measure the GPU kernels on one GPU machine, with one command.

set -u -o pipefail

usage() {
  cat <<'TEXT'
usage: benchmarks/gpu_all.sh [--seconds N] [--commit TEXT] [--only PART]... [folder]

Checks and measures the GPU kernels on a machine with one NVIDIA GPU. Rows, logs and a
summary go to the folder (default: ./gpu-results). A part that fails, or takes longer
than its limit, does not stop the others; the exit status is 1 if any failed. A part for
which no time is left is skipped, and the summary says so.

  --seconds N     time for all parts together (default: 580)
  --commit TEXT   commit that rows name, where the checkout has no .git
  --only PART     run this part alone; may be repeated

parts, in this order:
  environment     what the machine has
  check           every kernel on small shapes, against pure torch
  gpu-tests       tests that need a GPU
  tests           all tests of the Triton kernels, compiled
  memcheck        the same as check, under compute-sanitizer
  kernels         single products with one token
  decode          vLLM, Llama-3.1-8B's shapes, batch 1 and 64
  kernels-more    single products with 2 to 16 tokens, and prompts
  decode-more     vLLM, the other batch sizes, and Llama-3.2-1B's shapes
  roofline        the model of bytes, at the bandwidth that was measured

environment variables:
  GPU_ENV         a script that is sourced first, to set up Python
  PYTHON          the interpreter (default: python3)
  DECODE_ARGS     more arguments of gpu_decode.py, for example "--engine graph"
  KERNELS_ARGS    more arguments of gpu_kernels.py, for example "--rounds 5"
TEXT
}

fail() {
  echo "gpu_all: $1" >&2
  exit 2
}

total=580
commit=
out=gpu-results
only=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --seconds | --commit | --only)
      [ $# -gt 1 ] || fail "$1 needs a value. Expected: see --help"
      case $1 in
        --seconds) total=$2 ;;
        --commit) commit=$2 ;;
        --only) only+=("$2") ;;
      esac
      shift 2
      ;;
    -*) fail "$1 is unknown. Expected: see --help" ;;
    *)
      out=$1
      shift
      ;;
  esac
done
[[ $total =~ ^[0-9]+$ ]] || fail "--seconds is $total. Expected a whole number"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd) || exit 2
cd "$root" || exit 2

if [ -n "${GPU_ENV:-}" ]; then
  [ -r "$GPU_ENV" ] || fail "GPU_ENV is $GPU_ENV. Expected a script that can be read"
  set +u # it is somebody else's script
  # shellcheck disable=SC1090
  . "$GPU_ENV" || fail "GPU_ENV: $GPU_ENV ended with status $?"
  set -u
fi
python=${PYTHON:-python3}
# The checkout's own packages, whether or not they are installed.
export PYTHONPATH="$root:$root/kernels:$root/tests/shared${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
unset TRITON_INTERPRET NMSPARSE_BACKEND

parts=(environment check gpu-tests tests memcheck kernels decode kernels-more decode-more)
parts+=(roofline)
for part in ${only[@]+"${only[@]}"}; do
  [[ " ${parts[*]} " == *" $part "* ]] || fail "--only $part is unknown. Expected: see --help"
done
began=$SECONDS
names=()
ends=()
took=()
bad=0

wanted() {
  local part
  [ ${#only[@]} -gt 0 ] || return 0
  for part in "${only[@]}"; do
    [ "$part" != "$1" ] || return 0
  done
  return 1
}

record() {
  names+=("$1")
  ends+=("$2")
  took+=("$3")
  echo "==> $1: $2 ($3 s)"
}

# part NAME LIMIT COMMAND...: run within its limit and what is left of all time.
part() {
  local name=$1 limit=$2 left=$((total - (SECONDS - began))) start=$SECONDS status
  shift 2
  wanted "$name" || return 0
  if [ "$left" -lt 5 ]; then
    record "$name" "skipped: no time left, run it with --only $name" 0
    return 0
  fi
  [ "$limit" -le "$left" ] || limit=$left
  echo "==> $name, at most $limit s: $*"
  timeout --kill-after=15 "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  case $status in
    0) record "$name" ok $((SECONDS - start)) ;;
    124 | 137) record "$name" "failed: stopped after $limit s" $((SECONDS - start)) ;;
    *) record "$name" "failed: status $status, see $name.log" $((SECONDS - start)) ;;
  esac
  if [ "$status" -ne 0 ]; then
    tail -n 15 "$out/$name.log"
    bad=1
  fi
}

skip() {
  if wanted "$1"; then
    record "$1" "skipped: $2" 0
  fi
}

# has MODULE...: can they be imported, without importing what is heavy.
has() {
  "$python" - "$@" <<'CODE'
import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))
CODE
}

# shellcheck disable=SC2329 # it is exported, and run by a shell with a time limit
environment() {
  nvidia-smi
  "$python" - <<'CODE'
import importlib.metadata, platform, sys

print("python", platform.python_version(), sys.executable)
for name in ("torch", "triton", "vllm", "transformers", "pytest", "hypothesis"):
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        print(name, "not installed")
import torch

about = torch.cuda.get_device_properties(0)
print(about)
print("L2 cache", about.L2_cache_size, "bytes; CUDA", torch.version.cuda)
CODE
}

# The project's own pytest options ask for plugins that a GPU machine may lack.
tests=("$python" -m pytest -q -o addopts=--import-mode=importlib)
tests+=(-p no:cacheprovider)
named=()
[ -z "$commit" ] || named=(--commit "$commit")
read -r -a more_kernels <<<"${KERNELS_ARGS:-}"
read -r -a more_decode <<<"${DECODE_ARGS:-}"
kernels=("$python" benchmarks/gpu_kernels.py --results "$out")
kernels+=(${named[@]+"${named[@]}"} ${more_kernels[@]+"${more_kernels[@]}"})
decode=("$python" benchmarks/gpu_decode.py --results "$out")
decode+=(${named[@]+"${named[@]}"} ${more_decode[@]+"${more_decode[@]}"})

export -f environment
export python
part environment 60 bash -c environment
part check 90 "$python" benchmarks/gpu_kernels.py --check

if has pytest hypothesis; then
  part gpu-tests 60 "${tests[@]}" -m gpu tests/nmsparse/ops
  part tests 120 "${tests[@]}" -m "not gpu" tests/nmsparse/ops/triton
else
  skip gpu-tests "pytest or hypothesis is not installed"
  skip tests "pytest or hypothesis is not installed"
fi

if sanitizer=$(command -v compute-sanitizer); then
  # Without torch's cache every tensor is an allocation, so that its end is one too.
  part memcheck 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    "$sanitizer" --tool memcheck --error-exitcode 9 --target-processes all \
    "$python" benchmarks/gpu_kernels.py --check --shapes 80x72
else
  skip memcheck "there is no compute-sanitizer on PATH"
fi

part kernels 120 "${kernels[@]}" --tokens 1 --seconds 100

if has vllm; then
  part decode 200 "${decode[@]}" --batches 1 64 --tokens 96 --rounds 7 \
    --modes 8:16 off "stock again" 4:16
else
  skip decode "vllm is not installed"
fi

part kernels-more 150 "${kernels[@]}" --tokens 2 4 8 16 512 2048 --rounds 9 --seconds 120

if has vllm; then
  part decode-more 400 bash -c '"$@" --batches 2 4 8 16 --modes 8:16 "8:16 shared" &&
    "$@" --modes "pruned 50%" --batches 1 64 &&
    "$@" --model llama-1b --modes 8:16 4:16' decode-more "${decode[@]}"
else
  skip decode-more "vllm is not installed"
fi

if [ -s "$out/gpu_kernels.jsonl" ]; then
  part roofline 30 "$python" benchmarks/gpu_roofline.py --rows "$out/gpu_kernels.jsonl"
else
  skip roofline "no product was measured"
fi

{
  echo "summary, $((SECONDS - began)) s, results in $out"
  for index in "${!names[@]}"; do
    printf '  %-14s %4s s  %s\n' "${names[$index]}" "${took[$index]}" "${ends[$index]}"
  done
} | tee "$out/summary.txt"
exit "$bad"
