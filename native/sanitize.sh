#!/bin/sh
# Builds the C tests with the library under AddressSanitizer + UBSan and under ThreadSanitizer, and
# runs them. Usage: native/sanitize.sh [address|thread] [build directory]
set -eu
root=$(cd "$(dirname "$0")" && pwd)
tests=$(cd "$root/../tests/native" && pwd)
kinds=${1:-"address thread"}
build=${2:-"$root/../build/sanitize"}
cc=${CC:-gcc}
base="-std=c11 -D_GNU_SOURCE -O1 -g1 -fno-omit-frame-pointer -ffp-contract=fast -Wall -Wextra -Werror"
avx2="-mavx2 -mfma -mf16c"
avx512="$avx2 -mavx512f -mavx512bw -mavx512vl -mavx512dq"

isa_flags() {
  case "$(uname -m)/$1" in
    x86_64/kernel_avx2 | x86_64/dense_avx2) echo "$avx2" ;;
    x86_64/kernel_avx512 | x86_64/dense_avx512) echo "$avx512" ;;
    x86_64/kernel_avx512_vnni) echo "$avx512 -mavx512vnni" ;;
    x86_64/kernel_avx512_bf16) echo "$avx512 -mavx512vnni -mavx512bf16" ;;
    x86_64/dense_avx512_bf16) echo "$avx512 -mavx512bf16" ;;
  esac
}

# The kernels are unrolled a hundredfold: without these checks they compile in a third of the time,
# and what the checks look for is found by AddressSanitizer anyway.
kernel_flags() {
  case "$1/$2" in
    address/kernel_*) echo "-fno-sanitize=alignment,null,object-size,pointer-overflow" ;;
  esac
}

is_current() { # object
  [ -e "$1" ] && [ -z "$(find "$root/src" "$root/include" -newer "$1" -type f)" ]
}

compile() { # kind flags
  mkdir -p "$build/$1"
  for source in "$root"/src/*.c; do
    name=$(basename "$source" .c)
    object="$build/$1/$name.o"
    # shellcheck disable=SC2046,SC2086
    is_current "$object" ||
      $cc $base $2 $(isa_flags "$name") $(kernel_flags "$1" "$name") -I"$root/include" \
        -c "$source" -o "$object"
  done
  for source in "$tests"/*.c; do
    name=$(basename "$source" .c)
    # shellcheck disable=SC2086
    $cc $base $2 -I"$root/include" "$source" "$build/$1"/*.o -pthread -lm -o "$build/$1/$name"
  done
}

for kind in $kinds; do
  case $kind in
    address) flags="-fsanitize=address,undefined -fno-sanitize-recover=all" ;;
    thread) flags="-fsanitize=thread" ;;
    *) echo "sanitize.sh: kind is '$kind'; it must be 'address' or 'thread'" >&2; exit 2 ;;
  esac
  compile "$kind" "$flags"
  for source in "$tests"/*.c; do
    # `arguments` writes KV that workers read: one thread may not, and this one does so on purpose.
    [ "$kind/$(basename "$source")" = thread/arguments.c ] && continue
    echo "$kind: $(basename "$source" .c)"
    TSAN_OPTIONS="halt_on_error=1" timeout 120 "$build/$kind/$(basename "$source" .c)"
  done
done
