"""torch's dtypes as the native library knows them."""

from __future__ import annotations

import torch

from omniserve_native import DType

NATIVE_DTYPES = {
    torch.float32: DType.F32,
    torch.bfloat16: DType.BF16,
    torch.float16: DType.F16,
}
