#!/bin/sh
# Builds the library with AVX-512, VNNI and BF16 emulated by AVX2 (SIMDe: Debian's libsimde-dev; what it
# lacks is in emulated/immintrin.h) and runs tests/native on each of those paths: for machines without
# them. Says nothing about speed. The library lies in the build directory, where only this finds it.
# Usage: native/emulated.sh [path ...], of avx512_bf16 avx512_vnni avx512; PYTHON=... names the interpreter
set -eu
root=$(cd "$(dirname "$0")" && pwd)
cd "$root/.."
build=$PWD/build/emulated
package=$build/omniserve_native
paths=${*:-"avx512_bf16 avx512_vnni avx512"}
python=${PYTHON:-.venv/bin/python}
cc=${CC:-gcc}
base="-std=c11 -D_GNU_SOURCE -DOS_EMULATED -O2 -ffp-contract=fast -fPIC -fvisibility=hidden -Wall -Wextra -Werror"
avx2="-mavx2 -mfma -mf16c"

isa_flags() {
  case $1 in
    *_avx512*) echo "$avx2 -Inative/emulated -Wno-psabi" ;;
    *_avx2) echo "$avx2" ;;
  esac
}

is_current() { # object
  [ -e "$1" ] && [ -z "$(find native/src native/include native/emulated* -newer "$1" -type f)" ]
}

# Side by side: three of them take half a minute each.
compile() {
  pids=
  for source in native/src/*.c; do
    name=$(basename "$source" .c)
    is_current "$build/$name.o" && continue
    # shellcheck disable=SC2046,SC2086
    $cc $base $(isa_flags "$name") -Inative/include -c "$source" -o "$build/$name.o" &
    pids="$pids $!"
  done
  for pid in $pids; do wait "$pid"; done
}

link() {
  "$python" -c "import runpy, sys
runpy.run_path('native/omniserve_native/build.py')['ffibuilder'].emit_c_code(sys.argv[1])" "$build/module.c"
  headers=$("$python" -c "import sysconfig; print(sysconfig.get_path('include'))")
  # shellcheck disable=SC2086
  $cc $base -Wno-unused-parameter -Inative/include -I"$headers" -shared "$build/module.c" "$build"/*.o \
    -pthread -lm -o "$package/_omniserve.abi3.so"
  ln -sf "$root"/omniserve_native/*.py "$package"
}

run() { # path
  echo "emulated: $1"
  OMNISERVE_ISA=$1 PYTHONPATH=$build:$PWD/tests:${PYTHONPATH:-} "$python" -c "
import omniserve_native as native
assert native.__file__.startswith('$build') and native.isa_name() == '$1', native.__file__"
  OMNISERVE_ISA=$1 PYTHONPATH=$build:${PYTHONPATH:-} "$python" -m pytest -p no:cacheprovider \
    --ignore=tests/native/test_sanitizers.py --ignore=tests/native/test_instruction_counts.py tests/native
}

case $(uname -m) in x86_64) ;; *) echo "emulated.sh: needs x86-64 with AVX2" >&2; exit 2 ;; esac
echo "#include <simde/x86/avx512.h>" | $cc -fsyntax-only -xc - 2>/dev/null ||
  { echo "emulated.sh: SIMDe's headers are missing: apt-get install libsimde-dev" >&2; exit 2; }
mkdir -p "$package"
compile
link
failed=0
for path in $paths; do run "$path" || failed=1; done
exit $failed
