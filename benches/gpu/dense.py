#!/usr/bin/env python3
"""A dense model of the shape of Llama 3.1 8B on PyTorch's attention, to stand beside `reattn bench --device cuda`.

    python3 benches/gpu/dense.py 8192 32768 131072 524288 1048576 > dense.json

Random weights in bf16, the prompt in chunks of 8,192 tokens, scaled_dot_product_attention with the flash backend alone.
Where keys and values of all layers do not fit the GPU, one layer is measured at the depth and counted `layers` times
(`"extrapolated": true`); attention at a depth does not depend on what the keys hold. Times are medians.
"""
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, DIM, VOCAB = 32, 4096, 14336, 32, 8, 128, 128256
CHUNK, ROUNDS = 8192, 5
DEVICE, DTYPE = "cuda", torch.bfloat16


def weight(rows, cols):
    return torch.empty(rows, cols, device=DEVICE, dtype=DTYPE).normal_(0, 0.02)


class Layer:
    def __init__(self):
        self.qkv = weight((HEADS + 2 * KV_HEADS) * DIM, HIDDEN)
        self.o = weight(HIDDEN, HEADS * DIM)
        self.gate_up = weight(2 * INTERMEDIATE, HIDDEN)
        self.down = weight(HIDDEN, INTERMEDIATE)
        self.norms = torch.ones(2, HIDDEN, device=DEVICE, dtype=DTYPE)


def rotate(x, position):
    frequency = 5e5 ** (-torch.arange(0, DIM // 2, device=DEVICE, dtype=torch.float32) * 2 / DIM)
    angle = torch.arange(position, position + x.shape[0], device=DEVICE, dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos()[:, None].to(DTYPE), angle.sin()[:, None].to(DTYPE)
    low, high = x[..., : DIM // 2], x[..., DIM // 2 :]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


def step(layer, hidden, keys, values, at):
    """One layer over the tokens at `at`; keys and values `[KV_HEADS, capacity, DIM]` hold those before."""
    n = hidden.shape[0]
    x = F.rms_norm(hidden, (HIDDEN,), layer.norms[0])
    q, k, v = (x @ layer.qkv.T).view(n, HEADS + 2 * KV_HEADS, DIM).split([HEADS, KV_HEADS, KV_HEADS], 1)
    keys[:, at : at + n] = rotate(k, at).transpose(0, 1)
    values[:, at : at + n] = v.transpose(0, 1)
    q = rotate(q, at).transpose(0, 1)[None]
    k, v = keys[None, :, : at + n], values[None, :, : at + n]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        if n == 1:
            out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            bias = torch.nn.attention.bias.causal_lower_right(n, at + n)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)
    hidden = hidden + out[0].transpose(0, 1).reshape(n, HEADS * DIM) @ layer.o.T
    x = F.rms_norm(hidden, (HIDDEN,), layer.norms[1])
    gate, up = (x @ layer.gate_up.T).chunk(2, -1)
    return hidden + (F.silu(gate) * up) @ layer.down.T


def timed(work):
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(length, layers, head):
    room = torch.cuda.mem_get_info()[0] - (4 << 30)
    all_fit = 2 * LAYERS * KV_HEADS * (length + 64) * DIM * 2 < room
    count = LAYERS if all_fit else 1
    stores = [torch.zeros(2, KV_HEADS, length + 64, DIM, device=DEVICE, dtype=DTYPE) for _ in range(count)]

    def prefill(chunk_at, n):
        hidden = torch.randn(n, HIDDEN, device=DEVICE, dtype=DTYPE)
        for i in range(count):
            hidden = step(layers[i], hidden, stores[i][0], stores[i][1], chunk_at)

    prefill(0, min(CHUNK, length))
    if all_fit:
        first = timed(lambda: [prefill(at, min(CHUNK, length - at)) for at in range(0, length, CHUNK)])
    else:
        # The cost of a chunk is a straight line in its depth: both ends give the sum.
        ends = [statistics.median(timed(lambda: prefill(at, CHUNK)) for _ in range(ROUNDS)) for at in (0, length - CHUNK)]
        first = sum(ends) / 2 * (length // CHUNK) * LAYERS

    def decode():
        hidden = torch.randn(1, HIDDEN, device=DEVICE, dtype=DTYPE)
        for i in range(count):
            hidden = step(layers[i], hidden, stores[i][0], stores[i][1], length)
        return hidden

    decode()
    token = statistics.median(timed(decode) for _ in range(ROUNDS)) * (LAYERS // count)
    last = torch.randn(1, HIDDEN, device=DEVICE, dtype=DTYPE)
    token += statistics.median(timed(lambda: last @ head.T) for _ in range(ROUNDS))
    return {"length": length, "first_token_s": first, "decode_tok_s": 1 / token, "extrapolated": not all_fit}


def main():
    torch.manual_seed(1)
    with torch.inference_mode():
        layers = [Layer() for _ in range(LAYERS)]
        head = weight(VOCAB, HIDDEN)
        rows = [measure(int(length), layers, head) for length in sys.argv[1:]]
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
