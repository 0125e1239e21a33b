#!/bin/sh
# Builds the C tests with the library under AddressSanitizer + UBSan and under ThreadSanitizer, and
# runs them; under the former also plays the fuzzers' inputs and some random ones.
# Usage: native/sanitize.sh [address|thread] [build directory]
set -eu
root=$(cd "$(dirname "$0")" && pwd)
tests=$(cd "$root/../tests/native" && pwd)
kinds=${1:-"address thread"}
build=${2:-"$root/../build/sanitize"}
cc=${CC:-gcc}
. "$root/flags.sh"

compile() { # kind flags
  mkdir -p "$build/$1"
  for source in "$root"/src/*.c; do
    name=$(basename "$source" .c)
    object="$build/$1/$name.o"
    # shellcheck disable=SC2046,SC2086
    is_current "$object" ||
      $cc $base $2 $(isa_flags "$name") $([ "$1" = thread ] || kernel_flags "$name") \
        -I"$root/include" -c "$source" -o "$object"
  done
  for source in "$tests"/*.c; do
    name=$(basename "$source" .c)
    # shellcheck disable=SC2086
    $cc $base $2 -I"$root/include" "$source" "$build/$1"/*.o -pthread -lm -o "$build/$1/$name"
  done
}

# Not under ThreadSanitizer: the inputs write KV that workers read. One thread may not; these do.
replay() {
  echo "address: fuzz"
  # shellcheck disable=SC2086
  $cc $base $address -I"$root/include" "$tests"/fuzz/*.c "$build/address"/*.o -pthread -lm \
    -o "$build/address/fuzz"
  timeout 120 "$build/address/fuzz" "$tests/fuzz/corpus" "${REPLAY_RANDOM_INPUTS:-2000}"
}

for kind in $kinds; do
  case $kind in
    address) flags=$address ;;
    thread) flags="-fsanitize=thread" ;;
    *) echo "sanitize.sh: kind is '$kind'; it must be 'address' or 'thread'" >&2; exit 2 ;;
  esac
  compile "$kind" "$flags"
  for source in "$tests"/*.c; do
    echo "$kind: $(basename "$source" .c)"
    TSAN_OPTIONS="halt_on_error=1" timeout 120 "$build/$kind/$(basename "$source" .c)"
  done
  if [ "$kind" = address ]; then replay; fi
done
