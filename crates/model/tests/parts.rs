//! GGUF models in parts: loaded as the whole, and refused where a part is not what it should be.
#![allow(clippy::unwrap_used)]

use reattention_model::Checkpoint;
use reattention_model::synth::{GgufType, Shape, write_gguf};
use std::path::{Path, PathBuf};

/// Header, metadata and table of a file that `write_gguf` wrote, taken apart.
struct Whole {
    values: u64,
    metadata: Vec<u8>,
    /// Entries of the table but for the offset at their end, with the bytes of the tensor.
    tensors: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Whole {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let after_text = |at: usize| at + 8 + u64_at(at) as usize;
        let (n_tensors, values) = (u64_at(8), u64_at(16));
        let mut at = 24;
        for _ in 0..values {
            at = after_text(at) + 4;
            at = match u32_at(at - 4) {
                7 => at + 1,
                4 | 6 => at + 4,
                8 => after_text(at),
                9 => {
                    let (kind, n) = (u32_at(at), u64_at(at + 4) as usize);
                    match kind {
                        8 => (0..n).fold(at + 12, |at, _| after_text(at)),
                        _ => at + 12 + 4 * n,
                    }
                }
                other => panic!("metadata of type {other}"),
            };
        }
        let metadata = bytes[24..at].to_vec();
        let mut table = Vec::new();
        for _ in 0..n_tensors {
            let start = at;
            at = after_text(at);
            at += 4 + 8 * u32_at(at) as usize + 4;
            table.push((bytes[start..at].to_vec(), u64_at(at) as usize));
            at += 8;
        }
        let data = &bytes[at.next_multiple_of(32)..];
        let ends = table.iter().skip(1).map(|(_, offset)| *offset).chain([data.len()]);
        let tensors =
            table.iter().zip(ends).map(|((entry, start), end)| (entry.clone(), data[*start..end].to_vec()));
        Self { values, metadata, tensors: tensors.collect() }
    }

    /// Writes some of the tensors as part `no` of `count`, with the metadata if it is the first.
    fn write(&self, path: &Path, no: u16, count: u16, total: i32, tensors: std::ops::Range<usize>) {
        let mut metadata = if no == 0 { self.metadata.clone() } else { Vec::new() };
        let mut key = |name: &str, kind: u32, value: &[u8]| {
            metadata.extend((name.len() as u64).to_le_bytes());
            metadata.extend(name.as_bytes());
            metadata.extend(kind.to_le_bytes());
            metadata.extend(value);
        };
        key("split.no", 2, &no.to_le_bytes());
        key("split.count", 2, &count.to_le_bytes());
        key("split.tensors.count", 5, &total.to_le_bytes());
        let values = 3 + if no == 0 { self.values } else { 0 };
        let tensors = &self.tensors[tensors];
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend(values.to_le_bytes());
        bytes.extend(metadata);
        let mut offset = 0u64;
        for (entry, data) in tensors {
            bytes.extend(entry);
            bytes.extend(offset.to_le_bytes());
            offset += data.len() as u64;
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        tensors.iter().for_each(|(_, data)| bytes.extend(data));
        std::fs::write(path, bytes).unwrap();
    }
}

/// A model, whole and in three parts of which the first holds no tensor.
fn in_parts(dir: &Path) -> (PathBuf, [PathBuf; 3], Whole) {
    let whole = dir.join("whole.gguf");
    write_gguf(&whole, &Shape::tiny("qwen3"), GgufType::F32, 3).unwrap();
    let read = Whole::read(&whole);
    std::fs::create_dir(dir.join("parts")).unwrap();
    let paths = [1, 2, 3].map(|n| dir.join(format!("parts/Tiny-0000{n}-of-00003.gguf")));
    let n = read.tensors.len();
    for (i, range) in [0..0, 0..n / 2, n / 2..n].into_iter().enumerate() {
        read.write(&paths[i], i as u16, 3, n as i32, range);
    }
    (whole, paths, read)
}

fn error(path: &Path) -> String {
    Checkpoint::open(path).unwrap_err().to_string()
}

/// All of a model's output matrices of attention.
fn rows(path: &Path) -> Vec<f32> {
    let weights = Checkpoint::open(path).unwrap().load().unwrap();
    let mut all = Vec::new();
    for linear in weights.layers.iter().map(|layer| &layer.o).chain([&weights.embed]) {
        let mut row = vec![0.0; linear.cols()];
        (0..linear.rows()).for_each(|i| {
            linear.copy_row(i, &mut row);
            all.extend(&row);
        });
    }
    all
}

#[test]
fn parts_are_read_as_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts, _) = in_parts(dir.path());
    let (a, b) = (Checkpoint::open(&whole).unwrap(), Checkpoint::open(&parts[0]).unwrap());
    assert_eq!(a.config(), b.config());
    assert_eq!(a.plan().unwrap(), b.plan().unwrap());
    assert_eq!(rows(&whole), rows(&parts[0]));
    assert!(b.tokenizer().is_ok());
    // A folder that holds nothing else is named as well.
    let folder = Checkpoint::open(&dir.path().join("parts")).unwrap();
    assert_eq!(folder.plan().unwrap(), b.plan().unwrap());
    // Every part counts for what the model is told by.
    let before = b.fingerprint().unwrap();
    assert_eq!(folder.fingerprint().unwrap(), before);
    let mut last = std::fs::read(&parts[2]).unwrap();
    *last.last_mut().unwrap() ^= 1;
    std::fs::write(&parts[2], last).unwrap();
    assert_ne!(Checkpoint::open(&parts[0]).unwrap().fingerprint().unwrap(), before);
}

#[test]
fn what_is_no_set_of_parts_is_refused_in_those_words() {
    let dir = tempfile::tempdir().unwrap();
    let (_, parts, whole) = in_parts(dir.path());
    let n = whole.tensors.len();
    let later = error(&parts[1]);
    assert!(later.contains("part 2 of 3") && later.contains("-00001-of-00003.gguf"), "{later}");

    whole.write(&parts[2], 2, 3, n as i32, n / 2..n - 1);
    let few = error(&parts[0]);
    assert!(few.contains(&format!("announces {n} tensors")), "{few}");
    whole.write(&parts[2], 2, 3, n as i32, 0..n);
    let twice = error(&parts[0]);
    assert!(twice.contains("Tiny-00002") && twice.contains("Tiny-00003"), "{twice}");
    whole.write(&parts[2], 1, 3, n as i32, n / 2..n);
    let other = error(&parts[0]);
    assert!(other.contains("Tiny-00003") && other.contains("split.no 2"), "{other}");

    std::fs::remove_file(&parts[2]).unwrap();
    let missing = error(&parts[0]);
    assert!(missing.contains("Tiny-00003-of-00003.gguf is missing"), "{missing}");
    std::fs::remove_file(&parts[1]).unwrap();
    assert!(error(&parts[0]).contains("Tiny-00002-of-00003.gguf (and 1 more)"));

    let renamed = dir.path().join("first.gguf");
    std::fs::rename(&parts[0], &renamed).unwrap();
    assert!(error(&renamed).contains("must end in -00001-of-00003.gguf"), "{}", error(&renamed));
    whole.write(&parts[1], 1, 3, n as i32, 0..n);
    let folder = error(&dir.path().join("parts"));
    assert!(folder.contains("not the first part"), "{folder}");
    for (no, count) in [(3, 3), (7, 2)] {
        whole.write(&renamed, no, count, n as i32, 0..n);
        assert!(error(&renamed).contains("are no part of a model"), "{}", error(&renamed));
    }
}
