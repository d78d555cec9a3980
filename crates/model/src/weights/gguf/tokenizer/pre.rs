//! How byte-level vocabularies cut a text into words before their joins, by the name under `tokenizer.ggml.pre`.
//!
//! The names, and what goes with each, are those of llama.cpp; the patterns are the ones published in the models'
//! tokenizer.json, where the two differ (llama.cpp spells "capital letter" in ASCII).

/// What one name stands for.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    /// Its names.
    names: &'static [&'static str],
    /// Patterns, applied in turn: each cuts what those before it left whole into matches and what lies between.
    pub(super) passes: &'static [&'static str],
    /// A piece that is a token as a whole is taken without joining.
    pub(super) ignore_merges: bool,
    /// The begin token stands before every text where the file does not say.
    pub(super) add_bos: bool,
}

/// The pre-tokenizer of this name; an absent one is `default`.
///
/// # Errors
/// With what is to be said of a name that is not served.
pub(super) fn named(name: Option<&str>) -> Result<&'static PreTokenizer, String> {
    let name = name.unwrap_or("default");
    if let Some(found) = TABLE.iter().find(|p| p.names.contains(&name)) {
        return Ok(found);
    }
    if let Some((_, reason)) = UNSERVED.iter().find(|(n, _)| *n == name) {
        return Err(format!("the pre-tokenizer `{name}` is not served: {reason}"));
    }
    let shown: String = name.chars().take(80).collect();
    Err(format!("the pre-tokenizer `{shown}` is not known; {}; use the Hugging Face folder", near(name)))
}

/// Known names like this one, or how many there are.
fn near(name: &str) -> String {
    let plain = |s: &str| s.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    let wanted = plain(name);
    let family: String = wanted.chars().take_while(|c| c.is_alphabetic()).collect();
    let like = |known: &str| {
        let known = plain(known);
        (family.len() >= 3 && known.starts_with(&family))
            || (known.len() >= 3 && (wanted.contains(&known) || known.contains(&wanted) && wanted.len() >= 3))
    };
    let close: Vec<&str> = TABLE.iter().flat_map(|p| p.names).copied().filter(|n| like(n)).collect();
    match close.is_empty() {
        false => format!("near it are {}", close.join(", ")),
        true => {
            format!("{} are, llama-bpe, qwen2, smollm, tekken, gpt-4o and gpt-2 among them", known_names())
        }
    }
}

fn known_names() -> usize {
    TABLE.iter().map(|p| p.names.len()).sum()
}

/// Every name that is served.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().flat_map(|p| p.names).copied()
}

// Parts of patterns that many share: English contractions, and white space at the end of a pattern.
macro_rules! contractions {
    () => {
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    };
}
macro_rules! perhaps_contracted {
    () => {
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    };
}
macro_rules! spaces {
    () => {
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}
/// A pattern of Llama 3's kind: words with a character before them, digits as given, anything else, white space.
macro_rules! words {
    ($digits:literal) => {
        concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*",
            spaces!()
        )
    };
}
/// A pattern of GPT-4o's kind: a word ends where a capital follows a small letter.
macro_rules! cased_words {
    ($suffix:expr, $digits:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $suffix,
            "|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*",
            spaces!()
        )
    };
}

const GPT2: &str = crate::synth::GPT2_PATTERN;
const DIGIT: &str = r"\p{N}";
const DIGITS: &str = r"\p{N}+";
const THREE_DIGITS: &str = r"\p{N}{1,3}";
const THREE_ASCII_DIGITS: &str = "[0-9][0-9][0-9]";
const LLAMA3: &str = words!(r"\p{N}{1,3}");
const QWEN2: &str = words!(r"\p{N}");
const QWEN35: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    spaces!()
);
const MINICPM5: &str = words!(r"\p{N}+");
/// Line breaks stay apart from punctuation.
const SEED_CODER: &str =
    concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+", spaces!());
/// One line break a piece.
const BAILING: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
);
const UFAKZEKA: &str = concat!(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*", spaces!());
/// Words may hold single spaces.
const EXAONE_MOE: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?",
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
);
/// White space by powers of two.
const JAIS2: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)",
    r"|\s{1,2}(?!\S)|\s{1}"
);
const TEKKEN: &str = cased_words!("", r"\p{N}");
const GPT4O: &str = cased_words!(perhaps_contracted!(), r"\p{N}{1,3}");
const YOUTU: &str = cased_words!(perhaps_contracted!(), r"\p{N}");
const LINE_BREAKS_APART: &str = r"[^\n]+|[\n]+";
/// Groups of three counted from the right.
const THREES_FROM_RIGHT: &str = r"\d{1,3}(?=(?:\d{3})*\b)";
const CUT_AT_THREES: &str = r"(?=(\d{3})+(?!\d))";
const DEFAULT_PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";
const FALCON_PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|`]+";
const BLOOM: &str = " ?[^(\\s|.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{0964}\u{06d4}\u{060c})]+";
/// Han and kana.
const DEEPSEEK_CJK: &str = "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*",
    spaces!()
);
const SPARK: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"
);
const LINE_BREAK: &str = r"[\r\n]";
/// What DeepSeek's first tokenizers call Han and Hangul: nearly everything from U+0800 on.
const DEEPSEEK_ASIAN: &str = "[\u{4e00}-\u{9fa5}\u{0800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
/// The alphabets with capitals, as an older Unicode knew them.
const DEEPSEEK_LETTERS: &str = concat!(
    "\\s?[A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}",
    "\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}",
    "\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}",
    "\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}",
    "\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}",
    "\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}",
    "\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}",
    "\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}",
    "\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}",
    "\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}",
    "\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}",
    "\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}]+"
);
const DEEPSEEK_PUNCTUATION: &str =
    "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+";
const YOUTU_CJK: &str = concat!(
    "[\u{ac00}-\u{d7a3}\u{3131}-\u{318e}]+",
    "|[\u{ff01}\u{2026}\u{201c}\u{201d}\u{2018}\u{2019}\u{2014}\u{ff1a}\u{ff1b}\u{ff0c}\u{3001}-\u{303f}\u{fe30}-\u{fe4f}]+",
    "|[\u{3105}-\u{312f}]+|[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+"
);

/// A line of the table: no begin token by default, joins always run.
const fn pre(names: &'static [&'static str], passes: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { names, passes, ignore_merges: false, add_bos: false }
}

const TABLE: &[PreTokenizer] = &[
    pre(&["default"], &[DEFAULT_PUNCTUATION, GPT2, DIGITS, THREE_ASCII_DIGITS]),
    PreTokenizer {
        ignore_merges: true,
        add_bos: true,
        ..pre(
            &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
            &[LLAMA3],
        )
    },
    pre(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], &[LLAMA3]),
    pre(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &[QWEN2],
    ),
    pre(&["seed-coder"], &[SEED_CODER]),
    pre(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    pre(&["ufakzeka"], &[UFAKZEKA]),
    pre(&["laguna"], &[LINE_BREAKS_APART, QWEN2]),
    pre(&["qwen35"], &[QWEN35]),
    PreTokenizer { ignore_merges: true, ..pre(&["minicpm5"], &[THREE_DIGITS, MINICPM5]) },
    PreTokenizer { ignore_merges: true, add_bos: true, ..pre(&["tekken"], &[TEKKEN]) },
    pre(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    pre(&["tiny_aya", "cohere2moe"], &[THREES_FROM_RIGHT, GPT4O]),
    pre(
        &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
            "olmo",
            "mpt",
            "jais",
            "trillion",
            "granite-docling",
        ],
        &[GPT2],
    ),
    pre(
        &[
            "smollm",
            "starcoder",
            "refact",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
            "command-r",
            "cohere2_moe",
        ],
        &[DIGIT, GPT2],
    ),
    pre(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[THREE_DIGITS, DEEPSEEK_CJK, DEEPSEEK3]),
    pre(&["spark2_5"], &[THREE_DIGITS, DEEPSEEK_CJK, SPARK, DIGIT]),
    pre(
        &["deepseek-llm"],
        &[LINE_BREAK, DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", DEEPSEEK_ASIAN, DIGITS],
    ),
    pre(&["deepseek-coder"], &[LINE_BREAK, r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_ASIAN, DIGIT]),
    PreTokenizer { ignore_merges: true, ..pre(&["youtu"], &[YOUTU_CJK, YOUTU]) },
    pre(&["falcon"], &[FALCON_PUNCTUATION, GPT2, THREE_ASCII_DIGITS]),
    pre(&["bloom", "gpt3-finnish", "poro-chat"], &[BLOOM]),
    pre(&["viking"], &[BLOOM, DIGIT]),
    PreTokenizer {
        add_bos: true,
        ..pre(
            &["chameleon"],
            &[
                "<sentinel:[0-9]+>",
                "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                DIGIT,
                r"[\p{P}!-/:-@\[-`{-~]",
                GPT2,
            ],
        )
    },
    pre(&["exaone-moe"], &[EXAONE_MOE]),
    pre(&["superbpe"], &[DIGITS, CUT_AT_THREES]),
    pre(&["jais-2"], &[JAIS2]),
];

const ENCODER: &str = "it belongs to encoder models, which generate nothing";
const RAW: &str = "its vocabulary is raw UTF-8 without words; use the Hugging Face folder";

/// Names that are known and not served, with the reason.
const UNSERVED: &[(&str, &str)] = &[
    ("gemma4", RAW),
    ("sarvam-moe", RAW),
    ("granite-embed-multi-311m", ENCODER),
    ("granite-embed-multi-97m", ENCODER),
    ("whitespace", ENCODER),
    ("jina-v1-en", ENCODER),
    ("jina-v2-code", ENCODER),
    ("jina-v2-es", ENCODER),
    ("jina-v2-de", ENCODER),
    ("jina-es", ENCODER),
    ("jina-de", ENCODER),
    ("jina-v5-nano", ENCODER),
    ("roberta-bpe", ENCODER),
    ("modern-bert", ENCODER),
    ("kimi-k2", "its file has no joins, and its family is not served"),
    ("afmoe", "its digits follow a rule of their own, and its family is not served"),
];
