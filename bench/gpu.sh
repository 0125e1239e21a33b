#!/usr/bin/env bash
# The engine on a bare GPU machine that has torch, but no package index and not all of our packages.
#
#   bench/gpu.sh pack             here: the missing wheels into .whl/, to travel with the tree
#   bench/gpu.sh run              there: install, build, test on CUDA, measure; gpu.json and a table
#   bench/gpu.sh rehearse         the same on the CPU, with the same python: no lease for typing errors
#   bench/gpu.sh colocation       there: bench/colocation.py on random weights of Llama-3-8B's shape; call
#                                 it again while it exits with 75 (each call stays within SLICE_S, 560)
#
# PYTHON (python3) is the interpreter that holds torch; results go to ${OUT:-bench/out}.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/out}
SITE=/tmp/omniserve-site
# What the engine and its build import beyond torch, transformers and the test tools.
WHEELS=(cffi==2.1.1 pycparser==3.12 msgspec==0.22.0 pyzmq==27.3.0 setuptools==81.0.0)
# What the agent over HTTP and its client import beside those.
AGENT_WHEELS=(aiohttp attrs aiohappyeyeballs aiosignal frozenlist multidict propcache yarl idna
  pydantic==2.14.4 pydantic-core==2.50.5 annotated-types typing-inspection typing-extensions pyyaml
  structlog typer click shellingham annotated-doc rich markdown-it-py mdurl pygments
  prometheus-client psutil tenacity filelock jinja2 markupsafe)
MODEL_DIR=${MODEL_DIR:-/tmp/llama-3-8b-random}
SLICE_S=${SLICE_S:-560}
PLATFORMS=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_26_x86_64
  manylinux_2_17_x86_64 manylinux2014_x86_64)
TEST_LIMIT_S=${TEST_LIMIT_S:-420}
BENCH_LIMIT_S=${BENCH_LIMIT_S:-120}

pack() {
  mkdir -p .whl
  rm -f .whl/*.whl
  "$PYTHON" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp "${PLATFORMS[@]/#/--platform=}" -d .whl \
    "${WHEELS[@]}" "${AGENT_WHEELS[@]}"
  git describe --always --dirty --abbrev=12 >.whl/COMMIT # there, .git may be missing
  echo "packed $(du -ch .whl/*.whl | tail -1 | cut -f1) into .whl: carry it and run bench/gpu.sh run"
}

has_torch() { # a line about what is there; fails where there is no CUDA device
  "$PYTHON" - "$1" <<'PY'
import sys

try:
    import torch
except ImportError as error:
    sys.exit(f"bench/gpu.sh: {sys.executable} has no torch ({error}); set PYTHON to one that has")
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit(f"bench/gpu.sh: torch {torch.__version__} sees no CUDA device; run this on a GPU machine")
print(f"python {sys.version.split()[0]}, torch {torch.__version__}")
PY
}

install() {
  "$PYTHON" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile \
    --no-cache-dir --upgrade --target "$SITE" .whl/*.whl
  export PYTHONPATH="$SITE:$PWD/crds:$PWD/operator:$PWD/agent:$PWD/native"
  "$PYTHON" native/omniserve_native/build.py
}

run() { # device, then which tests
  local device=$1
  shift
  compgen -G '.whl/*.whl' >/dev/null ||
    { echo "bench/gpu.sh: .whl/ holds no wheels; run bench/gpu.sh pack where pip works, and carry .whl" >&2; exit 1; }
  has_torch "$device"
  install
  mkdir -p "$OUT"
  local tests=0 figures=0
  timeout "$TEST_LIMIT_S" "$PYTHON" -m pytest "$@" -rs -p no:cacheprovider tests/engine \
    --junitxml "$OUT/gpu-tests.xml" 2>&1 | tee "$OUT/gpu-tests.log" || tests=$?
  timeout "$BENCH_LIMIT_S" "$PYTHON" bench/gpu_report.py --device "$device" \
    --tests "$OUT/gpu-tests.xml" --out "$OUT" || figures=$?
  ((tests == 0)) || echo "bench/gpu.sh: tests failed (exit code $tests): $OUT/gpu-tests.log" >&2
  ((figures == 0)) || echo "bench/gpu.sh: no figures (exit code $figures)" >&2
  exit $((tests ? tests : figures))
}

colocation() { # further arguments go to bench/colocation.py
  has_torch cuda
  install
  [[ -f $MODEL_DIR/tokenizer.json ]] || "$PYTHON" bench/colocation_model.py "$MODEL_DIR"
  local done=0
  "$PYTHON" bench/colocation.py --device cuda --model-dir "$MODEL_DIR" --limit-s "$SLICE_S" "$@" || done=$?
  [[ $OUT == bench/out ]] || cp bench/out/colocation* "$OUT"/
  exit "$done"
}

case ${1:-} in
  pack) pack ;;
  run) run cuda -m cuda ;;
  colocation) colocation "${@:2}" ;;
  rehearse) run cpu -k 'torch and not smollm2' ;; # the CUDA path's code, on the CPU
  *)
    echo "bench/gpu.sh: ${1:-nothing} is not a command; use pack, run, rehearse or colocation" >&2
    exit 2
    ;;
esac
