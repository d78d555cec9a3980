"""The needle model in PyTorch, and its files as Hugging Face lays them out. Parameter names are those of LlamaForCausalLM."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn


@dataclass(frozen=True)
class Config:
    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    # High for so short a window: with 10,000 the same recipe learned far more slowly and less exactly.
    rope_theta: float = 500_000.0


class RmsNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x, cos, sin, mask):
        batch, length, _ = x.shape
        heads = lambda y: y.view(batch, length, -1, self.config.head_dim).transpose(1, 2)
        query, key, value = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        # Written out: at these sizes several times faster on a CPU than the fused kernel.
        scores = query @ key.transpose(-1, -2) * self.config.head_dim**-0.5 + mask.to(query.dtype)
        out = torch.softmax(scores, -1, dtype=query.dtype) @ value
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


def rotated(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos.to(x.dtype) + torch.cat((-x[..., half:], x[..., :half]), -1) * sin.to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RmsNorm(config), RmsNorm(config)
        self.self_attn, self.mlp = Attention(config), Mlp(config)

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Needle(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.model.norm = RmsNorm(config)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=initial_std(name, parameter, config))

    def hidden(self, tokens):
        """Hidden states [batch, length, hidden_size] of tokens [batch, length]."""
        config, length = self.config, tokens.shape[1]
        frequencies = config.rope_theta ** -(torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        angles = torch.arange(length).float()[:, None] * frequencies
        angles = torch.cat((angles, angles), -1)
        mask = torch.full((length, length), -1e4).triu(1)
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, angles.cos(), angles.sin(), mask)
        return self.model.norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.model.embed_tokens.weight)


def initial_std(name, parameter, config):
    if "embed" in name:
        return 0.02
    into_residual = "o_proj" in name or "down_proj" in name
    return 1 / math.sqrt(parameter.shape[1] * (2 * config.num_hidden_layers if into_residual else 1))


def save(model, tokenizer, folder):
    """Writes the model in bf16 with its configuration and tokenizer."""
    folder, config = Path(folder), model.config
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    write = lambda name, value: (folder / name).write_text(json.dumps(value, indent=1) + "\n")
    write("config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **vars(config), "rope_scaling": None,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
        "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.02,
        "use_cache": True, "torch_dtype": "bfloat16",
    })
    write("generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
    write("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|eos|>",
        "model_max_length": config.max_position_embeddings, "clean_up_tokenization_spaces": False,
    })


def load(folder):
    """The model of a folder, with float32 weights."""
    stated = json.loads((Path(folder) / "config.json").read_text())
    model = Needle(Config(**{name: stated[name] for name in Config.__dataclass_fields__}))
    tensors = load_file(Path(folder) / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.eval()
