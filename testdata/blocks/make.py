"""Writes blocks.txt: blocks of every type with the weights that the package `gguf` makes of them.

    python make.py > blocks.txt        # pip install numpy gguf==VERSION in the first line of blocks.txt
"""

from importlib.metadata import version

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

TYPES = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 NVFP4 TQ1_0 TQ2_0".split()
# Where numbers in half precision lie; any bytes are valid elsewhere.
HALVES = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2],
          "Q6_K": [208], "TQ1_0": [52], "TQ2_0": [64], "MXFP4": [], "NVFP4": []}

rng = np.random.default_rng(41)
print(f"# gguf {version('gguf')}: type, block, weights as bits of f32, in hexadecimal")
for name in TYPES:
    kind = GGMLQuantizationType[name]
    length, size = GGML_QUANT_SIZES[kind]
    for fill in (None, 0x00, 0xFF):
        block = rng.integers(0, 256, size, dtype=np.uint8) if fill is None else np.full(size, fill, np.uint8)
        for at in HALVES.get(name, [0]):
            block[at : at + 2] = np.array([rng.normal() / 30], np.float16).view(np.uint8)
        weights = dequantize(block, kind).astype(np.float32)
        assert weights.size == length
        bits = weights.view(np.uint32)
        text = "".join(f"{b:08x}" for b in bits)
        print(name.lower(), block.tobytes().hex(), text)
