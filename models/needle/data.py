"""Texts the needle model learns from: word lists, prose, facts, the tokenizer, and training sequences.

The word lists are read from crates/eval/src/text/words.rs, so that the model learns the very words with which it is
evaluated. Everything is drawn from seeded generators; the only text that is not generated is `local_text()`, which is
optional and differs from machine to machine.
"""

import ast
import glob
import math
import random
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS = 0, 1
DIGITS = 5
WORDS_RS = Path(__file__).resolve().parents[2] / "crates/eval/src/text/words.rs"

# How well a target token has to be learned: not at all beyond ordinary prose, as the first token of an answer, as a
# later one, or as what frames an answer (the name repeated, full stop, end token).
PROSE, FIRST, REST, FRAME = range(4)


class Words:
    """The word lists, as attributes named like the constants of words.rs in lower case."""

    def __init__(self, path=WORDS_RS):
        source = Path(path).read_text(encoding="utf-8")
        for name, body in re.findall(r"const (\w+): \[&str; \d+\] =\s*\[(.*?)\];", source, re.DOTALL):
            setattr(self, name.lower(), re.findall(r'"([^"]*)"', body))


class Prose:
    """English-like sentences, shaped as in crates/eval/src/text/grammar.rs, but with the plain plurals and articles
    that the shipped model was trained on."""

    def __init__(self, words, rng):
        self.words, self.rng = words, rng

    def full_name(self):
        return f"{self.rng.choice(self.words.first_names)} {self.rng.choice(self.words.last_names)}"

    def invented_name(self):
        """Two or three syllables that are no known name."""
        onsets = "b d f g k l m n p r s t v z br dr gr kr tr st pl sh".split()
        rimes = "a e i o u ai or an el un".split()
        syllables = self.rng.randint(2, 3)
        return "".join(self.rng.choice(onsets) + self.rng.choice(rimes) for _ in range(syllables)).capitalize()

    def noun_phrase(self):
        w, pick = self.words, self.rng.choice
        shapes = [
            lambda: f"the {pick(w.adjectives)} {pick(w.nouns)}",
            lambda: f"the {pick(w.nouns)}",
            lambda: f"a {pick(w.adjectives)} {pick(w.nouns)}",
            lambda: pick(w.first_names),
            lambda: f"the {pick(w.nouns)} of {pick(w.first_names)}",
        ]
        return self.rng.choices(shapes, [45, 30, 10, 8, 7])[0]()

    def clause(self):
        w, pick, noun = self.words, self.rng.choice, self.noun_phrase
        shapes = [
            lambda: f"{noun()} {pick(w.transitive_verbs)} {noun()}",
            lambda: f"{noun()} {pick(w.intransitive_verbs)} {pick(w.places)}",
            lambda: f"{noun()} {pick(w.adverbs)} {pick(w.transitive_verbs)} {noun()} {pick(w.places)}",
            lambda: f"{noun()} was {pick(w.adjectives)} {pick(w.times)}",
            lambda: f"there were {pick(w.quantities)} {pick(w.nouns)}s {pick(w.places)}",
            lambda: f"{self.full_name()} {pick(w.transitive_verbs)} {noun()}",
        ]
        return self.rng.choices(shapes, [40, 20, 15, 10, 8, 7])[0]()

    def sentence(self):
        pick, clause = self.rng.choice, self.clause
        shapes = [
            clause,
            lambda: f"{clause()}, {pick(self.words.conjunctions)} {clause()}",
            lambda: f"{pick(self.words.times)}, {clause()}",
            lambda: f"in {self.rng.randint(1500, 2020)}, {clause()}",
            lambda: f"{clause()}; it cost {self.rng.randint(2, 9999)} coins",
            lambda: f'"{capitalized(clause())}," said {self.noun_phrase()}',
        ]
        return capitalized(self.rng.choices(shapes, [45, 25, 12, 6, 6, 6])[0]()) + "."


def capitalized(text):
    return text[:1].upper() + text[1:]


def fact(attribute, name, value):
    return f"The {attribute} of {name} is {value}."


def question(attribute, name):
    """The question with the beginning of its answer."""
    return f"\nQuestion: What is the {attribute} of {name}?\nAnswer: The {attribute} of {name} is"


def local_text(limit=60_000):
    """Sentences of the docstrings of this Python's standard library and of the licence texts under /usr/share."""
    texts = []
    library = sysconfig.get_paths()["stdlib"]
    for path in sorted(glob.glob(f"{library}/*.py") + glob.glob(f"{library}/*/*.py")):
        if "site-packages" in path or "/test" in path:
            continue
        try:
            tree = ast.parse(Path(path).read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts += [doc for node in ast.walk(tree) if isinstance(node, documented) and (doc := ast.get_docstring(node))]
    licences = sorted(glob.glob("/usr/share/doc/*/copyright"))[:400] + sorted(glob.glob("/usr/share/common-licenses/*"))
    texts += [Path(path).read_text(encoding="utf-8", errors="ignore") for path in licences]
    sentences = {}
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in re.split(r"(?<=[.!?:]) ", " ".join(paragraph.split())):
                plain = sum(c.isalpha() or c == " " for c in sentence)
                if 25 < len(sentence) < 240 and plain > 0.85 * len(sentence):
                    sentences[sentence] = None
    sentences = list(sentences)
    random.Random(0).shuffle(sentences)
    return sentences[:limit]


def train_tokenizer(words, public, size, seed):
    """Byte-level BPE of at most `size` entries: digits one by one, words with the space before them."""
    pieces = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pieces), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()

    def corpus():
        rng = random.Random(seed)
        prose = Prose(words, rng)
        yield from public[:12_000]
        for _ in range(12_000):
            yield prose.sentence()
        # Every name often enough to become one token: the first token of a name then tells it apart.
        for first in words.first_names:
            for last in words.last_names:
                yield f" {first} {last}" * 8
        for _ in range(3_000):
            attribute = rng.choice(words.attributes)
            name = prose.full_name() if rng.random() < 0.7 else prose.invented_name()
            yield fact(attribute, name, rng.randint(10_000, 99_999)) + " " + question(attribute, name)

    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|bos|>", "<|eos|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", BOS)])
    return tokenizer


@dataclass(frozen=True)
class Mix:
    """What the sequences of one training stage are like. Shares are from 0 to 1."""

    length: int
    facts: tuple  # fewest and most
    questions: tuple  # fewest and most
    recall: float = 0.0  # share of sequences that are random-token recall instead of text
    restated: float = 0.0  # share of questions that merely restate the fact, without the words of a question
    one_attribute: float = 0.0  # share of sequences in which all facts are of one attribute
    repeats: float = 0.0  # share of sequences whose filler repeats itself and holds random tokens
    hard: float = 0.3  # share of facts that share a name or the attribute with an earlier one
    invented: float = 0.2  # share of names that are not from the lists
    wide_names: bool = False  # invented names may also be phrases and words
    end_token: bool = False  # answers end, and the name is repeated from the question by the model itself
    late: float = 0.5  # share of sequences with all questions at the end


class Sequences:
    """Training sequences of tokens, each with the kind of every token as a target."""

    def __init__(self, tokenizer, words, public, seed, pool=30_000):
        self.words, self.rng, self.size = words, random.Random(seed), tokenizer.get_vocab_size()
        self.text = Prose(words, self.rng)
        self.encode_new = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        self.known = {}
        filler = Prose(words, random.Random(seed * 7 + 3))
        self.prose = [self.encode_new(" " + filler.sentence()) for _ in range(pool)]
        self.public = [self.encode_new(" " + sentence) for sentence in public]
        rare = {word for sentence in public for word in re.findall(r"\b[a-z]{4,10}\b", sentence)}
        self.rare_words = sorted(rare) or words.nouns + words.adjectives
        self.first_digits = [self.encode_new(f" {d}")[0] for d in range(10)]
        self.digits = [self.encode_new(f"{d}")[0] for d in range(10)]

    def encode(self, text):
        """Tokens of a text that comes again."""
        if text not in self.known:
            self.known[text] = self.encode_new(text)
        return self.known[text]

    def batch(self, mix, size):
        """`size` sequences as lists of tokens and of kinds, the recall ones first, and the number of those."""
        recall = math.ceil(mix.recall * size)
        rows = [self.recall(mix.length + 1) if i < recall else self.reading(mix) for i in range(size)]
        return [tokens for tokens, _ in rows], [kinds for _, kinds in rows], recall

    def value(self):
        first, *rest = (self.rng.randrange(10) for _ in range(DIGITS))
        return [self.first_digits[first]] + [self.digits[d] for d in rest]

    def name(self, mix):
        """Tokens of a name, known or invented."""
        rng, text, words = self.rng, self.text, self.words
        if rng.random() >= mix.invented:
            return self.encode(" " + rng.choice(words.first_names)) + self.encode(" " + rng.choice(words.last_names))
        shapes, weights = [text.invented_name], [30]
        if mix.wide_names:
            shapes += [
                lambda: f"{text.invented_name()} {text.invented_name()}",
                lambda: f"the {rng.choice(words.adjectives)} {rng.choice(words.nouns)}",
                lambda: f"{rng.choice(words.first_names)} {text.invented_name()}",
                lambda: rng.choice(words.first_names),
                lambda: f"the {rng.choice(self.rare_words)}",
                lambda: f"{rng.choice(self.rare_words).capitalize()} {rng.choice(self.rare_words).capitalize()}",
            ]
            weights += [15, 15, 10, 5, 10, 15]
        return self.encode_new(" " + rng.choices(shapes, weights)[0]())

    def facts(self, mix):
        """Distinct (attribute, name tokens, value tokens)."""
        rng, attributes = self.rng, self.words.attributes
        one_attribute = rng.random() < mix.one_attribute
        wanted, facts = rng.randint(*mix.facts), {}
        while len(facts) < wanted:
            if facts and rng.random() < mix.hard:
                attribute, name = rng.choice(list(facts))
                if len(name) != 2 or rng.random() < 0.25:
                    attribute = rng.choice(attributes)
                elif rng.random() < 0.5:
                    name = (name[0], *self.encode(" " + rng.choice(self.words.last_names)))
                else:
                    name = (*self.encode(" " + rng.choice(self.words.first_names)), name[1])
            else:
                name = tuple(self.name(mix))
                attribute = attributes[0] if one_attribute or rng.random() < 0.55 else rng.choice(attributes)
            facts.setdefault((attribute, name), self.value())
        return [(attribute, list(name), value) for (attribute, name), value in facts.items()]

    def statement(self, attribute, name):
        return self.encode(" The") + self.encode(" " + attribute) + self.encode(" of") + name + self.encode(" is")

    def asked(self, mix, attribute, name, value):
        """A question and its answer: tokens and kinds."""
        stop = self.encode(".")
        kinds_of_value = [FIRST] + [REST] * (DIGITS - 1)
        start = self.statement(attribute, name)
        if self.rng.random() < mix.restated:
            return start + value + stop, [PROSE] * len(start) + kinds_of_value + [FRAME if mix.end_token else PROSE]
        asks = self.encode("\nQuestion: What is the") + self.encode(" " + attribute) + self.encode(" of") + name
        asks = asks + self.encode("?\nAnswer:")
        kinds = [PROSE] * (len(asks) + len(start))
        if not mix.end_token:
            return asks + start + value + stop, kinds + kinds_of_value + [PROSE]
        kinds[-1 - len(name):-1] = [FRAME] * len(name)
        return asks + start + value + stop + [EOS], kinds + kinds_of_value + [FRAME, FRAME]

    def filler(self, mix, room):
        """Pieces of prose of together at least `room` tokens; almost a third are cut out of a sentence."""
        rng, pieces, total = self.rng, [], 0
        repeats = rng.random() < mix.repeats
        while total < room:
            if repeats and pieces and rng.random() < 0.5:
                piece = rng.choice(pieces)
                piece = piece[rng.randrange(len(piece) // 2):] if len(piece) > 6 else piece
            elif repeats and rng.random() < 0.3:
                length = rng.randint(6, 24)
                few = [rng.randrange(2, self.size) for _ in range(length if rng.random() < 0.5 else 5)]
                piece = [rng.choice(few) for _ in range(length)]
            else:
                piece = rng.choice(self.public if self.public and rng.random() < 0.4 else self.prose)
                if rng.random() < 0.3:
                    start = rng.randrange(len(piece))
                    piece = piece[start:start + rng.randint(3, 24)]
            pieces.append(piece)
            total += len(piece)
        excess = total - max(room, 0)
        while excess > 0:  # the last pieces give way, so that facts and questions never do
            cut = min(excess, len(pieces[-1]))
            pieces[-1] = pieces[-1][:len(pieces[-1]) - cut]
            excess -= cut
            if not pieces[-1]:
                pieces.pop()
        return pieces

    def reading(self, mix):
        """Facts in prose, and questions on some of them: exactly `mix.length + 1` tokens."""
        rng = self.rng
        facts = self.facts(mix)
        asked = rng.sample(range(len(facts)), min(rng.randint(*mix.questions), len(facts)))
        stated = [self.statement(a, n) + v + self.encode(".") for a, n, v in facts]
        questions = [self.asked(mix, *facts[i]) for i in asked]
        used = 1 + sum(map(len, stated)) + sum(len(tokens) for tokens, _ in questions)
        pieces = [(tokens, None) for tokens in self.filler(mix, mix.length + 1 - used)]
        pieces += [(tokens, i) for i, tokens in enumerate(stated)]
        rng.shuffle(pieces)
        plain = [(tokens, [PROSE] * len(tokens), i) for tokens, i in pieces]
        if rng.random() < mix.late:
            plain += [(*q, None) for q in questions]
        else:
            for q, i in zip(questions, asked):
                after = next(at for at, piece in enumerate(plain) if piece[2] == i) + 1
                plain.insert(rng.randint(after, len(plain)), (*q, None))
        return self.joined(plain, mix.length + 1)

    def recall(self, length):
        """Warm-up: keys and values of random tokens or names and digits, told once and told again in another order."""
        rng, pieces, total = self.rng, [], 1
        anything = lambda: rng.randrange(2, self.size)
        while total < length:
            form = rng.randrange(4)  # key; two-part key; key, words, value; words, key, words, value
            pairs = rng.randint(2, 7)
            between = [anything() for _ in range(rng.randint(1, 2))] if form >= 2 else []
            before = [anything() for _ in range(rng.randint(0, 3))] if form == 3 else []
            names, digits = rng.random() < 0.5, rng.random() < 0.5
            draw = lambda known: self.encode(" " + rng.choice(known))[0] if names else anything()
            # Few parts for many keys: most keys share a part with another, so both parts have to be looked at.
            firsts = [draw(self.words.first_names) for _ in range(max(2, pairs // 2))]
            lasts = [draw(self.words.last_names) for _ in range(max(2, pairs // 2 + 1))]
            values = {}
            for _ in range(3 * pairs):
                if len(values) == pairs:
                    break
                key = (draw(self.words.last_names),) if form == 0 else (rng.choice(firsts), rng.choice(lasts))
                value = [rng.choice(self.first_digits) if digits else anything()]
                if rng.random() < 0.5:
                    value += [rng.choice(self.digits) if digits else anything() for _ in range(DIGITS - 1)]
                values[key] = value
            for told_again in (False, True):
                for key, value in rng.sample(list(values.items()), len(values)):
                    lead = before + list(key) + between
                    of_value = [FIRST] + [REST] * (len(value) - 1) if told_again else [PROSE] * len(value)
                    pieces.append((lead + value, [PROSE] * len(lead) + of_value, None))
                    total += len(lead) + len(value)
        return self.joined(pieces, length)

    @staticmethod
    def joined(pieces, length):
        tokens, kinds = [BOS], [PROSE]
        for piece_tokens, piece_kinds, _ in pieces:
            tokens += piece_tokens
            kinds += piece_kinds
        return tokens[:length], kinds[:length]
