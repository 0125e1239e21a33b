# Sourced by sanitize.sh and fuzz.sh: how a source of the library is compiled under a sanitizer.
base="-std=c11 -D_GNU_SOURCE -O1 -g1 -fno-omit-frame-pointer -ffp-contract=fast -Wall -Wextra -Werror"
address="-fsanitize=address,undefined -fno-sanitize-recover=all"
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
  case "$1" in kernel_*) echo "-fno-sanitize=alignment,null,object-size,pointer-overflow" ;; esac
}

is_current() { # object
  [ -e "$1" ] && [ -z "$(find "$root/src" "$root/include" "$root/flags.sh" -newer "$1" -type f)" ]
}
