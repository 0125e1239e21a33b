#!/bin/sh
# Fuzzes the C API's argument checks (tests/native/fuzz) under AddressSanitizer + UBSan for so many
# seconds, by libFuzzer where a clang has it. Else says so and plays the corpus and seeded random inputs
# for as long. What it finds is left under the build directory.
# Usage: native/fuzz.sh [seconds] [build directory]
set -eu
root=$(cd "$(dirname "$0")" && pwd)
target=$(cd "$root/../tests/native/fuzz" && pwd)
seconds=${1:-60}
build=${2:-"$root/../build/fuzz"}
. "$root/flags.sh"

# By $CC and unwatched what clang 16 cannot compile: bf16 dot products, and CPUID's f16c bit.
compile_one() { # compiler, object, source, name, flags
  case $4 in
    isa | *avx512*) set -- "${CC:-gcc}" "$2" "$3" "$4" "" ;;
    kernel_*) set -- "$1" "$2" "$3" "$4" "$address $(kernel_flags "$4")" ;; # no search through these
    *) set -- "$1" "$2" "$3" "$4" "$address $5" ;;
  esac
  # shellcheck disable=SC2046,SC2086
  $1 $base $5 $(isa_flags "$4") -I"$root/include" -c "$3" -o "$2"
}

compile() { # compiler, folder, flags
  mkdir -p "$build/$2"
  for source in "$root"/src/*.c "$target"/*.c; do
    name=$(basename "$source" .c)
    case "$source/$2" in */replay.c/libfuzzer) continue ;; esac
    case $source in "$target"/*) name=play_$name ;; esac
    object="$build/$2/$name.o"
    [ "$object" -nt "$source" ] && [ "$object" -nt "$target/player.h" ] && is_current "$object" ||
      compile_one "$1" "$object" "$source" "$name" "$3"
  done
}

libfuzzer_clang() {
  for name in clang clang-19 clang-18 clang-17 clang-16 clang-15; do
    command -v "$name" >/dev/null || continue
    printf '__extension__ typedef _Float16 h; int LLVMFuzzerTestOneInput(const void *d, long n);
int LLVMFuzzerTestOneInput(const void *d, long n) { return d && (float)(h)n > 1e9f; }' >"$build/probe.c"
    "$name" -fsanitize=fuzzer,address,undefined "$build/probe.c" -o "$build/probe" 2>/dev/null || continue
    echo "$name"
    return
  done
}

by_libfuzzer() { # clang
  echo "fuzz: libFuzzer ($1) for $seconds s"
  compile "$1" libfuzzer "-fsanitize=fuzzer-no-link -Wno-error -Wno-psabi"
  # shellcheck disable=SC2086
  "$1" $address -fsanitize=fuzzer "$build/libfuzzer"/*.o -pthread -lm -o "$build/libfuzzer/fuzz"
  mkdir -p "$build/libfuzzer/corpus"
  "$build/libfuzzer/fuzz" -max_total_time="$seconds" -max_len=4096 -timeout=10 -print_final_stats=1 \
    -artifact_prefix="$build/libfuzzer/" "$build/libfuzzer/corpus" "$target/corpus" \
    >"$build/libfuzzer/log" 2>&1 || { tail -40 "$build/libfuzzer/log"; return 1; }
  grep -E '^stat::|DONE' "$build/libfuzzer/log"
}

by_replay() {
  echo "fuzz: no clang from 15 on with libFuzzer is installed (Debian: apt-get install" \
    "--no-install-recommends clang-16 libclang-rt-16-dev); corpus and random inputs for $seconds s"
  compile "${CC:-gcc}" replay ""
  # shellcheck disable=SC2086
  "${CC:-gcc}" $address "$build/replay"/*.o -pthread -lm -o "$build/replay/fuzz"
  end=$(($(date +%s) + seconds)) seed=1
  while [ "$(date +%s)" -lt "$end" ]; do
    "$build/replay/fuzz" "$target/corpus" 1000 "$seed"
    seed=$((seed + 1000))
  done
}

mkdir -p "$build"
clang=$(libfuzzer_clang)
if [ -n "$clang" ]; then by_libfuzzer "$clang"; else by_replay; fi
