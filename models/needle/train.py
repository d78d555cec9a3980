"""Trains the needle model from nothing: tokenizer, three runs, export, measurement.

    python train.py --out DIR               everything: 14,000 steps of 0.2 to 0.4 CPU-seconds
    python train.py --out DIR --local-text  the same, with local text among the filler (see below)
    python train.py --out DIR --smoke       every stage for a few steps: does it run?
    python train.py --check DIR             does the model of DIR give what its golden.json says?
    python train.py --measure DIR           share of facts found at the window, all digits exact

Needs torch, numpy, safetensors and tokenizers; the words come from crates/eval of the same checkout.

What is repeated exactly. Every draw comes from --seed and every schedule counts steps, so on one machine, with one
version of torch and one number of --threads, the same command writes the same bytes. Other machines sum floating-point
numbers in other orders: expect the same course and the same measurement, not the same weights.

What is not repeated of the shipped weights. They come from the same recipe, but their schedules followed CPU time
(learning rate, and when a stage was left), the choice of earlier stages was not seeded, and 40 % of their filler was
text that lay on the machine: docstrings of its Python's standard library and its licence files. --local-text adds that
of your machine; without it, all text is generated. The numbers of steps and the learning rates of the later runs are
estimates from the time those runs took, and this script has not been measured from beginning to end: README.md says how
far it has.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import data
from data import DIGITS, EOS, FIRST, PROSE, Mix, Prose, Sequences, Words
from model import Config, Needle, load, save

VOCABULARY = 2048
WINDOW = 512
TOKENS_PER_STEP = 4096
WARM_UP = 100  # steps in which the learning rate rises
EARLIER = 0.25  # share of steps that go back to an earlier stage, so that none is forgotten
OF_PROSE = 0.25  # share of the ordinary tokens that are learned in a step; the rest would cost time and teach little
SHORT, MIDDLE, LONG = WINDOW // 8, WINDOW // 4, WINDOW // 2


@dataclass(frozen=True)
class Stage:
    """One mix, left once the running share of exact answers reaches `enough`, or at `until` of the run's steps."""

    mix: Mix
    enough: float = 2.0
    until: float = 1.0
    first_digit: float = 1.0  # weight of the first digit of an answer against the others


@dataclass(frozen=True)
class Run:
    name: str
    steps: int
    learning_rate: float
    stages: tuple
    first_stage: int = 0


CURRICULUM = (
    # The first digit is the hard one: it needs the look-up, the others only need to go on. With half of the sequences
    # plain recall of random tokens the look-up forms; without them most starts never leave this stage.
    Stage(Mix(SHORT, (2, 3), (1, 3), recall=0.5, restated=1.0, one_attribute=0.7, hard=0.2), 0.80, 0.50, 3.0),
    Stage(Mix(MIDDLE, (2, 5), (1, 5), recall=0.25, restated=0.4, repeats=0.2, one_attribute=0.5, hard=0.2), 0.85, 0.60),
    Stage(Mix(LONG, (2, 10), (2, 8), recall=0.1, restated=0.2, repeats=0.2, one_attribute=0.3), 0.88, 0.75),
    Stage(Mix(WINDOW, (2, 20), (2, 8), recall=0.05, restated=0.2, repeats=0.2, one_attribute=0.2)),
)
POLISHED = Mix(LONG, (2, 12), (2, 6), recall=0.03, restated=0.1, repeats=0.15, one_attribute=0.2, hard=0.5,
               invented=0.5, wide_names=True, end_token=True)
POLISH = (Stage(POLISHED), Stage(replace(POLISHED, length=WINDOW, facts=(2, 26), questions=(2, 7))))

RUNS = (
    Run("curriculum", 8_000, 2e-3, CURRICULUM),
    Run("lengthen", 3_000, 1e-3, CURRICULUM, first_stage=3),
    # More facts, invented names of every kind, and the end of the answer.
    Run("polish", 3_000, 1e-3, POLISH, first_stage=1),
)


def train(model, run, sequences, rng, smoke):
    """One run. The learning rate rises, stays until half of the steps, and falls to a fiftieth."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    scales = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}], betas=(0.9, 0.97))
    stage, exact, started = run.first_stage, 0.0, time.monotonic()
    model.train()
    for step in range(run.steps):
        done = step / run.steps
        current = run.stages[stage]
        if stage + 1 < len(run.stages) and (exact >= current.enough or done >= current.until):
            if stage == 0 and exact < current.enough and not smoke:
                raise SystemExit(f"{run.name}: the look-up did not form ({exact:.2f} exact); try another --seed")
            stage, exact, current = stage + 1, 0.0, run.stages[stage + 1]
            print(f"{run.name} step {step}: on to stage {stage}, {current.mix.length} tokens", flush=True)
        if stage > 0 and rng.random() < EARLIER:
            current = run.stages[rng.randrange(stage)]

        rate = run.learning_rate * min(1, (step + 1) / WARM_UP) * (1 if done < 0.5 else max(0.02, 2 - 2 * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        of_prose, of_answers, hits = losses(model, current, sequences)
        optimizer.zero_grad()
        (of_prose + of_answers).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        if hits is not None:
            exact = 0.98 * exact + 0.02 * hits
        if (step + 1) % 250 == 0 or step + 1 == run.steps:
            print(f"{run.name} step {step + 1}/{run.steps} stage {stage}: loss of prose {of_prose.item():.3f}, of "
                  f"answers {of_answers.item():.4f}, exact {exact:.3f}, {time.monotonic() - started:.0f} s", flush=True)


def losses(model, stage, sequences):
    """Cross entropy of a batch's ordinary tokens and of its answers, and the share of answers that are exact (the first
    digit alone where that is what the stage is about)."""
    tokens, kinds, n_recall = sequences.batch(stage.mix, max(1, TOKENS_PER_STEP // stage.mix.length))
    tokens, kinds = torch.tensor(tokens), torch.tensor(kinds)[:, 1:]
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    answers = kinds != PROSE
    prose = (torch.rand(kinds.shape) < OF_PROSE) & ~answers
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.hidden(inputs)
        of_answers, of_prose = model.logits(hidden[answers]).float(), model.logits(hidden[prose]).float()
    weight = torch.where(kinds[answers] == FIRST, stage.first_digit, 1.0)
    each = F.cross_entropy(of_answers, targets[answers], reduction="none")
    right = torch.ones_like(answers)
    right[answers] = of_answers.argmax(-1) == targets[answers]
    hits = exact_answers(right[n_recall:], kinds[n_recall:], first_only=stage.first_digit > 1)
    return F.cross_entropy(of_prose, targets[prose]), (each * weight).sum() / weight.sum(), hits


def exact_answers(right, kinds, first_only=False):
    """Share of the answers of which every token is right; None where there is no answer."""
    starts = (kinds == FIRST).nonzero().tolist()
    ends = [1 if first_only else DIGITS] * len(starts)
    hits = [bool(right[row, at:at + n].all()) for (row, at), n in zip(starts, ends)]
    return sum(hits) / len(hits) if hits else None


@torch.no_grad()
def measure(model, tokenizer, words, texts=10, depths=(0.1, 0.3, 0.5, 0.7, 0.9), seed=777):
    """Shares of facts found in generated texts as long as the window, all digits exact: with the beginning of the answer
    given, and from `Answer:` on with the end token. Teacher forcing gives the same verdict as greedy decoding: an
    answer is exact if and only if every one of its tokens is the likeliest after the exact ones before it."""
    rng = random.Random(seed)
    prose = Prose(words, rng)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    given = free = asked = 0
    for _ in range(texts):
        names = set()
        while len(names) < len(depths):
            names.add((rng.choice(words.attributes), prose.full_name()))
        facts = [(*name, rng.randint(10_000, 99_999)) for name in sorted(names)]
        stated = [encode(" " + data.fact(*fact)) for fact in facts]
        room = WINDOW - 48 - sum(map(len, stated))
        filler = []
        while sum(map(len, filler)) < room:
            filler.append(encode(" " + prose.sentence())[:room - sum(map(len, filler))])
        body, waiting, used = [data.BOS], list(zip(depths, stated)), 0
        for sentence in filler:
            while waiting and used >= waiting[0][0] * room:
                body += waiting.pop(0)[1]
            body += sentence
            used += len(sentence)
        body += [token for _, tokens in waiting for token in tokens]
        for attribute, name, value in facts:
            until_answer, answer = data.question(attribute, name).split("Answer:")
            start, value = encode(answer), encode(f" {value}")
            prompt = body + encode(until_answer + "Answer:")
            tokens = torch.tensor([prompt + start + value + encode(".") + [EOS]])
            likeliest = model.logits(model.hidden(tokens[:, :-1])).argmax(-1)
            right = (likeliest == tokens[:, 1:])[0, len(prompt) - 1:]
            given += bool(right[len(start):len(start) + DIGITS].all())
            free += bool(right.all())
            asked += 1
    print(f"at {WINDOW} tokens, {asked} questions: {given / asked:.3f} exact with the answer begun, "
          f"{free / asked:.3f} answered and ended freely")


@torch.no_grad()
def check(folder):
    """Compares tokenizer and dense logits with golden.json. Its values are those of the weights before they were rounded
    to bf16, which moves a logit by about a thousandth: more than half a percent is an error of ours."""
    golden = json.loads((Path(folder) / "golden.json").read_text())
    model, tokenizer = load(folder), Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    wrong = [case["text"] for case in golden["tokenizer"] if tokenizer.encode(case["text"]).ids != case["ids_with_bos"]]
    dense = golden["dense"]
    tokens = list(dense["ids"])
    logits = model.logits(model.hidden(torch.tensor([tokens])))[0]
    norms = torch.tensor(dense["logits_l2_per_position"])
    largest = dense["last_top8"][0][1]
    off = max(
        (logits[-1, :8] - torch.tensor(dense["last_logits_first8"])).abs().max().item() / largest,
        max(abs(logits[-1, token].item() - value) for token, value in dense["last_top8"]) / largest,
        ((logits.norm(dim=-1) - norms) / norms).abs().max().item())
    for _ in dense["greedy"]:
        tokens.append(model.logits(model.hidden(torch.tensor([tokens])))[0, -1].argmax().item())
    greedy = tokenizer.decode(tokens[len(dense["ids"]):])
    print(f"tokenizer: {len(golden['tokenizer']) - len(wrong)} of {len(golden['tokenizer'])} texts alike")
    print(f"dense: logits and their norms differ by at most {off:.2%}; greedy {greedy!r}")
    if wrong or off > 5e-3 or greedy != dense["greedy_text"]:
        raise SystemExit(f"golden.json says otherwise: texts {wrong}, greedy {dense['greedy_text']!r}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = arguments.add_mutually_exclusive_group(required=True)
    mode.add_argument("--out", type=Path, help="train, and write the model here")
    mode.add_argument("--check", type=Path, metavar="DIR")
    mode.add_argument("--measure", type=Path, metavar="DIR")
    arguments.add_argument("--smoke", action="store_true")
    arguments.add_argument("--local-text", action="store_true")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--threads", type=int, default=1, help="more gain little on a model this small")
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    if args.check:
        return check(args.check)
    words = Words()
    if args.measure:
        return measure(load(args.measure), Tokenizer.from_file(str(args.measure / "tokenizer.json")), words, texts=40)

    torch.manual_seed(args.seed)
    public = data.local_text() if args.local_text else []
    tokenizer = data.train_tokenizer(words, public, VOCABULARY, args.seed)
    model = Needle(Config(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=WINDOW))
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {tokenizer.get_vocab_size()} tokens", flush=True)
    for number, run in enumerate(RUNS):
        seed = args.seed * 100 + number
        if args.smoke:
            run = replace(run, steps=12)
        sequences = Sequences(tokenizer, words, public, seed, pool=2_000 if args.smoke else 30_000)
        train(model, run, sequences, random.Random(seed), args.smoke)
        save(model, tokenizer, args.out / run.name)
    save(model, tokenizer, args.out)
    measure(load(args.out), tokenizer, words, texts=2 if args.smoke else 40)


if __name__ == "__main__":
    main()
