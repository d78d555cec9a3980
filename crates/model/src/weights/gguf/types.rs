//! Element types of tensors by their numbers in GGUF files ("ggml.h" of llama.cpp, and of ik_llama.cpp for its own).

use crate::weights::Element;
use reattention_kernels::BlockType;

/// The type of number `number`, or what is known of one that is not served.
pub(crate) fn element(number: u32) -> Result<Element, Unserved> {
    Ok(match number {
        0 => Element::F32,
        1 => Element::F16,
        30 => Element::Bf16,
        _ => Element::Quantised(block_type(number).ok_or(Unserved(number))?),
    })
}

/// The number of a type of blocks.
pub(crate) fn number(kind: BlockType) -> u32 {
    match kind {
        BlockType::Q4_0 => 2,
        BlockType::Q4_1 => 3,
        BlockType::Q5_0 => 6,
        BlockType::Q5_1 => 7,
        BlockType::Q8_0 => 8,
        BlockType::Q2K => 10,
        BlockType::Q3K => 11,
        BlockType::Q4K => 12,
        BlockType::Q5K => 13,
        BlockType::Q6K => 14,
        BlockType::Iq4Nl => 20,
        BlockType::Iq4Xs => 23,
        BlockType::Tq1_0 => 34,
        BlockType::Tq2_0 => 35,
        BlockType::Mxfp4 => 39,
        BlockType::Nvfp4 => 40,
        BlockType::Q1_0 => 41,
    }
}

fn block_type(wanted: u32) -> Option<BlockType> {
    BlockType::ALL.into_iter().find(|&kind| number(kind) == wanted)
}

/// The number of a type that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unserved(u32);

/// What is served, and another way to the same model: by kinds of types that are not.
macro_rules! served {
    ($advice:literal) => {
        concat!(
            "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS, MXFP4, NVFP4, TQ1_0, TQ2_0 and \
             Q1_0; ",
            $advice
        )
    };
}

impl Unserved {
    /// The types that are served, and which file of the same model to take.
    pub(crate) fn supported(self) -> &'static str {
        match self.0 {
            16 | 17 | 19 | 22 | 29 => served!("a Q2_K file of the same model is the next in size"),
            18 | 21 => served!("an IQ4_XS or Q3_K_M file of the same model is the next in size"),
            4 | 5 => served!("the file is older than what is read today: take a newer one, such as Q4_K_M"),
            31..=33 => served!("the Q4_0 file of the same model holds the same weights"),
            37 | 38 => served!("the IQ4_NL file of the same model holds the same weights"),
            24..=28 => served!("weights are no such numbers: was the file made by llama.cpp?"),
            97..=99 | 133..=158 | 202.. => {
                served!("take a file of the same model that llama.cpp itself reads, such as IQ4_XS or Q4_K_M")
            }
            _ => served!("take another file of the same model, such as IQ4_XS or Q4_K_M"),
        }
    }
}

impl std::fmt::Display for Unserved {
    /// The name people know the type by, with where it comes from when that is not today's llama.cpp.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = self.0;
        if let Some(name) = plain_name(number) {
            return f.write_str(name);
        }
        if let Some(name) = removed_name(number) {
            return write!(f, "{name} (removed from llama.cpp)");
        }
        if let Some(name) = ik_name(number) {
            return write!(f, "{name} (ik_llama.cpp)");
        }
        // ik_llama.cpp numbers types whose rows are interleaved 200 higher than the types they are made of.
        let Some(base) = number.checked_sub(200) else {
            return write!(f, "number {number}, which is unknown");
        };
        let rows = match base {
            2 | 8 | 23 | 151 => 8,
            30 => 16,
            _ => 4,
        };
        let dense = matches!(base, 0 | 1 | 30).then(|| ["F32", "F16", "BF16"][(base as usize).min(2)]);
        let blocks = block_type(base).map(|kind| kind.name().to_uppercase());
        match dense.or(plain_name(base)).or(ik_name(base)).map(str::to_owned).or(blocks) {
            Some(name) => write!(f, "{name}_R{rows} (rows interleaved, ik_llama.cpp)"),
            None => write!(f, "number {number}, which is unknown"),
        }
    }
}

/// Types of llama.cpp that are not served.
fn plain_name(number: u32) -> Option<&'static str> {
    Some(match number {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        36 => "I2_S (BitNet) or IQ4_NL_4_4 (removed from llama.cpp)",
        42 => "Q2_0",
        _ => return None,
    })
}

fn removed_name(number: u32) -> Option<&'static str> {
    Some(match number {
        4 => "Q4_2",
        5 => "Q4_3",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        _ => return None,
    })
}

fn ik_name(number: u32) -> Option<&'static str> {
    Some(match number {
        97 => "Q8_0_X4",
        98 => "Q8_1_X4",
        99 => "Q8_2_X4",
        133 => "Q6_0",
        134 => "IQ1_BN",
        135 => "IQ2_BN",
        136 => "Q8_K64",
        137 => "IQ2_K",
        138 => "IQ3_K",
        139 => "IQ4_K",
        140 => "IQ5_K",
        141 => "IQ6_K",
        142 => "IQ2_TN",
        143 => "IQ1_TN",
        144 => "IQ4_KS",
        145 => "IQ2_KS",
        146 => "IQ4_KSS",
        147 => "Q8_K16",
        148 => "Q8_K32",
        149 => "Q8_KR8",
        150 => "Q8_K128",
        151 => "Q8_KV",
        152 => "IQ5_KS",
        153 => "IQ2_KT",
        154 => "IQ3_KT",
        155 => "IQ4_KT",
        156 => "IQ3_KS",
        157 => "IQ2_KL",
        158 => "IQ1_KT",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_types_are_one_to_one() {
        for kind in BlockType::ALL {
            assert_eq!(element(number(kind)), Ok(Element::Quantised(kind)));
        }
        let served = (0..1000).filter(|&n| element(n).is_ok()).count();
        assert_eq!(served, BlockType::ALL.len() + 3);
    }

    #[test]
    fn what_is_not_served_is_called_by_its_name() {
        for (number, name, way) in [
            (16, "IQ2_XXS", "Q2_K"),
            (21, "IQ3_S", "IQ4_XS"),
            (29, "IQ1_M", "Q2_K"),
            (15, "Q8_K", "another file"),
            (26, "I32", "no such numbers"),
            (4, "Q4_2 (removed from llama.cpp)", "newer"),
            (32, "Q4_0_4_8 (removed from llama.cpp)", "Q4_0 file"),
            (38, "IQ4_NL_8_8 (removed from llama.cpp)", "IQ4_NL file"),
            (36, "I2_S (BitNet) or IQ4_NL_4_4 (removed from llama.cpp)", "another file"),
            (137, "IQ2_K (ik_llama.cpp)", "llama.cpp itself"),
            (144, "IQ4_KS (ik_llama.cpp)", "llama.cpp itself"),
            (212, "Q4_K_R4 (rows interleaved, ik_llama.cpp)", "llama.cpp itself"),
            (202, "Q4_0_R8 (rows interleaved, ik_llama.cpp)", "llama.cpp itself"),
            (216, "IQ2_XXS_R4 (rows interleaved, ik_llama.cpp)", "llama.cpp itself"),
            (230, "BF16_R16 (rows interleaved, ik_llama.cpp)", "llama.cpp itself"),
            (337, "IQ2_K_R4 (rows interleaved, ik_llama.cpp)", "llama.cpp itself"),
            (77, "number 77, which is unknown", "another file"),
            (u32::MAX, "number 4294967295, which is unknown", "llama.cpp itself"),
        ] {
            let Err(unserved) = element(number) else { panic!("{number} is served") };
            assert_eq!(unserved.to_string(), name);
            assert!(unserved.supported().contains(way), "{number}: {}", unserved.supported());
        }
    }
}
