//! Bytes of a file as text: Unicode in the encodings that files come in, and everything else refused by name.

use crate::limits::available;
use crate::memory::human;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Why a file is not read as text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The file cannot be read.
    #[error("{}: {}", file.display(), hint(error))]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file holds something that is not text.
    #[error("{file}: this is {kind}, not text; {cure}")]
    NotText {
        /// The file.
        file: String,
        /// What it is.
        kind: &'static str,
        /// What would do.
        cure: &'static str,
    },
    /// Neither UTF-8 nor UTF-16.
    #[error(
        "{file}: neither UTF-8 nor UTF-16 text (byte {at} is {byte:#04x}); convert it first, for instance with `iconv -f WINDOWS-1252 -t UTF-8`"
    )]
    Encoding {
        /// The file.
        file: String,
        /// The first byte that belongs to no character.
        at: usize,
        /// Its value.
        byte: u8,
    },
    /// More than can be read.
    #[error("{file}: larger than {}, the most a text may have here; split it", human(*most as usize))]
    TooLarge {
        /// The file.
        file: String,
        /// Most bytes.
        most: u64,
    },
}

fn hint(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".into(),
        std::io::ErrorKind::IsADirectory => "this is a folder; name the files in it".into(),
        _ => error.to_string(),
    }
}

/// Most bytes of a text: evidence keeps its places in 32 bits.
const LARGEST: u64 = u32::MAX as u64;

/// The text of a file.
///
/// # Errors
/// When it cannot be read, is larger than a text may be (4 GiB, or the memory that is free), or is not text (see
/// [`decode`]).
pub fn read_text(path: &Path) -> Result<String, TextError> {
    let error = |error| TextError::Io { file: path.to_path_buf(), error };
    if path.is_dir() {
        return Err(error(std::io::ErrorKind::IsADirectory.into()));
    }
    let file = std::fs::File::open(path).map_err(error)?;
    let (size, most) = (file.metadata().map_err(error)?.len(), most());
    if size > most {
        return Err(TextError::TooLarge { file: path.display().to_string(), most });
    }
    read_from(file, path)
}

/// The text that `input` gives to its end; `name` is what messages call it.
///
/// # Errors
/// As [`read_text`].
pub fn read_from(input: impl Read, name: &Path) -> Result<String, TextError> {
    let (mut bytes, most) = (Vec::new(), most());
    let read = input.take(most.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| TextError::Io { file: name.to_path_buf(), error })?;
    let file = name.display().to_string();
    if bytes.len() as u64 > most {
        return Err(TextError::TooLarge { file, most });
    }
    decode(bytes, &file)
}

/// Most bytes that are read of one text.
fn most() -> u64 {
    available().map_or(LARGEST, |free| LARGEST.min(free as u64))
}

/// Text of UTF-8, or of UTF-16 of either byte order; a byte order mark is taken off. UTF-16 without one is known by its zero
/// bytes. `file` names the bytes in messages.
///
/// # Errors
/// When the bytes begin as a file of a known other kind does (whatever its name), hold zero bytes as no text does, or are
/// neither encoding.
pub fn decode(bytes: Vec<u8>, file: &str) -> Result<String, TextError> {
    let not_text = |(kind, cure)| Err(TextError::NotText { file: file.to_string(), kind, cure });
    if let Some(kind) = kind_of(&bytes) {
        return not_text(kind);
    }
    match utf16(&bytes) {
        Some(Ok(text)) => return Ok(text),
        Some(Err(())) => return not_text(DAMAGED),
        None if bytes.contains(&0) => return not_text(BINARY),
        None => {}
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes().get(at).copied().unwrap_or_default();
        TextError::Encoding { file: file.to_string(), at, byte }
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_string(),
        None => text,
    })
}

/// What a kind of file is called, and what to do instead.
type Kind = (&'static str, &'static str);

const BINARY: Kind = ("a binary file, or an encoding with zero bytes", "name a text file saved as UTF-8");
const DAMAGED: Kind = ("damaged UTF-16", "save it as UTF-8 first");
const EXTRACT: &str = "extract its text first";
const UNPACK: &str = "unpack it first";
const NAME_TEXT: &str = "name a text file";
const PICTURE: &str = "name a text file; pictures are not read";
const MODEL: &str = "give it with --model";

/// Beginnings of files that hold something else than text, none of which a text can have.
const MAGIC: &[(&[u8], Kind)] = &[
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", ("an old Office document", EXTRACT)),
    (b"\x1f\x8b", ("a gzip archive", UNPACK)),
    (b"\x1f\x9d", ("a compressed file", UNPACK)),
    (b"BZh91AY&SY", ("a bzip2 archive", UNPACK)),
    (b"\xfd7zXZ\0", ("an xz archive", UNPACK)),
    (b"\x28\xb5\x2f\xfd", ("a Zstandard archive", UNPACK)),
    (b"\x04\x22\x4d\x18", ("an LZ4 archive", UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", ("a 7z archive", UNPACK)),
    (b"Rar!\x1a\x07", ("a RAR archive", UNPACK)),
    (b"\x89PNG\r\n", ("a PNG picture", PICTURE)),
    (b"\xff\xd8\xff", ("a JPEG picture", PICTURE)),
    (b"II*\0", ("a TIFF picture", PICTURE)),
    (b"MM\0*", ("a TIFF picture", PICTURE)),
    (b"\x7fELF", ("a program", NAME_TEXT)),
    (b"\xcf\xfa\xed\xfe", ("a program", NAME_TEXT)),
    (b"\xca\xfe\xba\xbe", ("a program", NAME_TEXT)),
    (b"\0asm", ("a program", NAME_TEXT)),
    (b"SQLite format 3\0", ("an SQLite database", "export its tables as text first")),
    (b"\x93NUMPY", ("a NumPy array", NAME_TEXT)),
    (b"\x89HDF\r\n", ("an HDF5 file", NAME_TEXT)),
    // What a text may begin with, too, but not with a mark or zero bytes behind it.
    (b"\xff\xfe\0\0", ("UTF-32 text", "convert it first, for instance with `iconv -f UTF-32 -t UTF-8`")),
    (b"\0\0\xfe\xff", ("UTF-32 text", "convert it first, for instance with `iconv -f UTF-32 -t UTF-8`")),
];

/// Beginnings in letters, with which a text about the format may begin as well: what follows must be no text.
const LETTERS: &[(&[u8], Kind)] = &[
    (b"GGUF", ("a GGUF model", MODEL)),
    (b"GIF8", ("a GIF picture", PICTURE)),
    (b"BM", ("a BMP picture", PICTURE)),
    (b"RIFF", ("a sound, film or picture", NAME_TEXT)),
    (b"OggS", ("a sound or film", NAME_TEXT)),
    (b"ID3", ("a sound", NAME_TEXT)),
    (b"MZ", ("a program", NAME_TEXT)),
    (b"PAR1", ("a Parquet table", "convert it to JSON lines or CSV first")),
];

fn kind_of(bytes: &[u8]) -> Option<Kind> {
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        // An archive names its files near its beginning, and again at its end.
        let ends = [&bytes[..bytes.len().min(4096)], &bytes[bytes.len().saturating_sub(4096)..]];
        let has = |name: &[u8]| ends.iter().any(|end| end.windows(name.len()).any(|window| window == name));
        return Some(match () {
            () if has(b"word/") => ("a Word document", EXTRACT),
            () if has(b"xl/") => ("an Excel workbook", "save it as CSV first"),
            () if has(b"ppt/") => ("a PowerPoint file", EXTRACT),
            () if has(b"application/epub+zip") => ("an EPUB book", EXTRACT),
            () if has(b"application/vnd.oasis.opendocument") => ("an OpenDocument file", EXTRACT),
            () if has(b"data.pkl") => ("a PyTorch checkpoint", NAME_TEXT),
            () => ("a zip archive", UNPACK),
        });
    }
    let starts = |of: &&(&[u8], Kind)| bytes.starts_with(of.0);
    if let Some((_, kind)) = MAGIC.iter().find(starts) {
        return Some(*kind);
    }
    document(bytes).or_else(|| {
        let is_text = || !bytes.contains(&0) && std::str::from_utf8(bytes).is_ok();
        let found = LETTERS.iter().find(starts).map(|(_, kind)| *kind);
        found.or_else(|| inside(bytes)).filter(|_| !is_text())
    })
}

/// Documents whose files may be nothing but letters.
fn document(bytes: &[u8]) -> Option<Kind> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    if bytes.starts_with(b"%PDF-") && bytes.get(5).is_some_and(u8::is_ascii_digit) {
        return Some(("a PDF document", "extract its text first, for instance with `pdftotext`"));
    }
    if bytes.starts_with(b"%!PS-Adobe") {
        return Some(("a PostScript document", "extract its text first, for instance with `ps2ascii`"));
    }
    bytes.starts_with(b"{\\rtf").then_some(("an RTF document", EXTRACT))
}

/// Files that are known by what stands behind their beginning.
fn inside(bytes: &[u8]) -> Option<Kind> {
    let at = |place: usize, text: &[u8]| bytes.get(place..).is_some_and(|rest| rest.starts_with(text));
    match () {
        () if at(8, b"{\"") => Some(("a safetensors file", "give its folder with --model")),
        () if at(4, b"ftyp") => Some(("a film or picture", NAME_TEXT)),
        () if at(257, b"ustar") => Some(("a tar archive", UNPACK)),
        () => None,
    }
}

/// The text of UTF-16, if it is that: by its mark, or since no other encoding gives text for bytes with zeros; an error where
/// the mark is followed by something else.
fn utf16(bytes: &[u8]) -> Option<Result<String, ()>> {
    type Order = fn([u8; 2]) -> u16;
    let text = |order: Order, bytes: &[u8]| {
        let (pairs, rest) = bytes.as_chunks::<2>();
        let text = char::decode_utf16(pairs.iter().map(|pair| order(*pair))).collect::<Result<String, _>>();
        text.ok().filter(|text| rest.is_empty() && !text.contains('\0'))
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => return Some(text(u16::from_le_bytes, rest).ok_or(())),
        [0xfe, 0xff, rest @ ..] => return Some(text(u16::from_be_bytes, rest).ok_or(())),
        _ if !bytes.contains(&0) => return None,
        _ => {}
    }
    // Characters of ASCII have their zero on the upper side; on the lower one few characters have it.
    let zeros = |side: usize| bytes.iter().skip(side).step_by(2).filter(|byte| **byte == 0).count();
    let likely = |order: Order, upper: usize| {
        let is_upper = zeros(upper) >= 4 * zeros(1 - upper);
        text(order, bytes).filter(|text| is_upper && reads_as_text(text)).map(Ok)
    };
    likely(u16::from_le_bytes, 1).or_else(|| likely(u16::from_be_bytes, 0))
}

/// Whether nearly all characters are letters, digits, spaces or marks that a keyboard has, and none steers a machine.
fn reads_as_text(text: &str) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || c.is_whitespace() || c.is_ascii_punctuation();
    let (mut all, mut plain, mut ascii) = (0, 0, 0);
    for c in text.chars() {
        if c.is_control() && !c.is_whitespace() {
            return false;
        }
        all += 1;
        plain += usize::from(is_plain(c));
        ascii += usize::from(c.is_ascii());
    }
    // A text without any space or full stop in fifty characters would not have shown by its zeros.
    10 * plain >= 9 * all && 50 * ascii >= all
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENTENCE: &str = "The locker code of Ada Winter is 44713; déjà vu.";

    fn utf16(text: &str, order: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(order).collect()
    }

    #[test]
    fn unicode_is_read_in_every_encoding() {
        let mark = format!("\u{feff}{SENTENCE}");
        for bytes in [
            SENTENCE.as_bytes().to_vec(),
            mark.as_bytes().to_vec(),
            utf16(SENTENCE, u16::to_le_bytes),
            utf16(SENTENCE, u16::to_be_bytes),
            utf16(&mark, u16::to_le_bytes),
            utf16(&mark, u16::to_be_bytes),
        ] {
            assert_eq!(decode(bytes.clone(), "f").unwrap(), SENTENCE, "{bytes:?}");
        }
        assert_eq!(decode(Vec::new(), "f").unwrap(), "");
        // Other scripts show by their spaces and full stops.
        for text in
            ["Война и мир", "密码是44713。今天下雨, 明天晴. 猫睡了一整天.", "Ο κωδικός είναι 44713.\r\n"]
        {
            for bytes in [
                utf16(text, u16::to_le_bytes),
                utf16(text, u16::to_be_bytes),
                utf16(&format!("\u{feff}{text}"), u16::to_le_bytes),
            ] {
                assert_eq!(decode(bytes, "f").unwrap(), text);
            }
        }
    }

    #[test]
    fn what_is_no_text_is_named_by_its_content() {
        let zip = |name: &str| [b"PK\x03\x04\x14\0\0\0\x08\0", name.as_bytes()].concat();
        for (bytes, says) in [
            (b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\n".to_vec(), "a PDF document"),
            (zip("word/document.xml"), "a Word document"),
            (zip("mimetypeapplication/epub+zip"), "an EPUB book"),
            (zip("notes.txt"), "a zip archive"),
            (b"\x1f\x8b\x08\0abc".to_vec(), "a gzip archive"),
            (b"GGUF\x03\0\0\0".to_vec(), "give it with --model"),
            (b"one\0two\0\0\x01".to_vec(), "a binary file"),
            (b"{\\rtf1\\ansi Hello}".to_vec(), "an RTF document"),
            (b"%!PS-Adobe-3.0\n".to_vec(), "a PostScript document"),
            (b"GIF89a\x01\0\x01\0".to_vec(), "a GIF picture"),
            (b"\x7fELF\x02\x01\x01\0".to_vec(), "a program"),
            (b"\xff\xfe\0\0a\0\0\0".to_vec(), "UTF-32"),
            (b"\x10\0\0\0\0\0\0\0{\"a\":{\"dtype\"".to_vec(), "a safetensors file"),
            // Half of a character at the end.
            (b"\xff\xfea\0b".to_vec(), "damaged UTF-16"),
        ] {
            let error = decode(bytes, "notes.txt").unwrap_err().to_string();
            assert!(error.starts_with("notes.txt: ") && error.contains(says), "{error}");
        }
        let error = decode(b"caf\xe9 au lait".to_vec(), "f").unwrap_err().to_string();
        assert!(error.contains("byte 3 is 0xe9") && error.contains("iconv"), "{error}");
    }

    #[test]
    fn a_text_may_begin_with_the_name_of_a_format() {
        for text in [
            "GGUF is a format of models.",
            "PAR1 is a name.",
            "BMW builds cars.",
            "GIF89a, a format",
            "%PDF-files are",
        ] {
            assert_eq!(decode(text.as_bytes().to_vec(), "f").unwrap(), text);
        }
    }

    #[test]
    fn what_has_no_end_is_not_read_to_it() {
        let most = most() as usize;
        assert!(most <= u32::MAX as usize);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("holes.txt");
        // A file of nothing but a hole takes no room.
        std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert!(error.contains("holes.txt: larger than "), "{error}");
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_text(dir.path()).unwrap_err().to_string();
        assert!(error.contains("this is a folder"), "{error}");
        let error = read_text(&dir.path().join("none.txt")).unwrap_err().to_string();
        assert!(error.ends_with("none.txt: there is no such file"), "{error}");
    }
}
