"""What this CPU computes in half precision, and how fast.

Asked by the module's name, ``processor.has_amx()``, since the tests play other processors here.
What is constant in a program is asked outside of it.
"""

import torch

from cvattn.core.constants import constant_in_programs


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision on CPUs without such instructions, where products are emulated.

    float16 never pays: 40 to 100 times slower than float32 on the CPUs that torch knows.
    """
    if device.type != "cpu" or dtype.itemsize != 2:
        return dtype
    return torch.bfloat16 if dtype == torch.bfloat16 and has_bfloat16() else torch.float32


# What is constant in a program is asked outside of it.
@constant_in_programs
def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.10
        return torch.cpu._is_avx512_bf16_supported()
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@constant_in_programs
def has_half_kernel() -> bool:
    """Whether torch's CPU kernel is made for half precision here.

    It fails on a processor with AMX where torch is told to do without AVX512
    (``ATEN_CPU_CAPABILITY``).
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


@constant_in_programs
def has_amx() -> bool:
    """Whether this CPU multiplies tiles of bfloat16 in one instruction."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.10
        return torch.cpu._is_amx_tile_supported()
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))
