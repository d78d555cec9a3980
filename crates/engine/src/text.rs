//! Bytes of a file as text: Unicode in the encodings that files come in, and everything else refused by name.

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
}

fn hint(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".into(),
        std::io::ErrorKind::IsADirectory => "this is a folder; name the files in it".into(),
        _ => error.to_string(),
    }
}

/// The text of a file.
///
/// # Errors
/// When it cannot be read, or is not text (see [`decode`]).
pub fn read_text(path: &Path) -> Result<String, TextError> {
    let error = |error| TextError::Io { file: path.to_path_buf(), error };
    if path.is_dir() {
        return Err(error(std::io::ErrorKind::IsADirectory.into()));
    }
    decode(std::fs::read(path).map_err(error)?, &path.display().to_string())
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
    if let Some(order) = utf16_order(&bytes) {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| order([pair[0], pair[1]])).collect();
        let mark = usize::from(units.first() == Some(&0xfeff));
        return match String::from_utf16(&units[mark..]) {
            Ok(text) if bytes.len().is_multiple_of(2) && !text.contains('\0') => Ok(text),
            _ => not_text(BINARY),
        };
    }
    if bytes.contains(&0) {
        return not_text(BINARY);
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

const BINARY: Kind = ("a binary file", "name a text file");
const EXTRACT: &str = "extract its text first";
const UNPACK: &str = "unpack it first";

/// Beginnings of files that hold something else than text.
const MAGIC: &[(&[u8], Kind)] = &[
    (b"%PDF-", ("a PDF document", "extract its text first, for instance with `pdftotext`")),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", ("an old Office document", EXTRACT)),
    (b"{\\rtf", ("an RTF document", EXTRACT)),
    (b"\x1f\x8b", ("a gzip archive", UNPACK)),
    (b"BZh", ("a bzip2 archive", UNPACK)),
    (b"\xfd7zXZ\0", ("an xz archive", UNPACK)),
    (b"\x28\xb5\x2f\xfd", ("a Zstandard archive", UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", ("a 7z archive", UNPACK)),
    (b"Rar!\x1a\x07", ("a RAR archive", UNPACK)),
    (b"\x89PNG\r\n", ("a PNG picture", "name a text file")),
    (b"\xff\xd8\xff", ("a JPEG picture", "name a text file")),
    (b"GIF8", ("a GIF picture", "name a text file")),
    (b"\x7fELF", ("a program", "name a text file")),
    (b"MZ\x90\0", ("a program", "name a text file")),
    (b"SQLite format 3\0", ("an SQLite database", "export its tables as text first")),
    (b"GGUF", ("a model", "give it with --model")),
    (b"PAR1", ("a Parquet table", "convert it to JSON lines or CSV first")),
];

fn kind_of(bytes: &[u8]) -> Option<Kind> {
    if bytes.starts_with(b"PK\x03\x04") {
        // An archive names its files near its beginning, and again at its end.
        let ends = [&bytes[..bytes.len().min(4096)], &bytes[bytes.len().saturating_sub(4096)..]];
        let has = |name: &[u8]| ends.iter().any(|end| end.windows(name.len()).any(|window| window == name));
        return Some(match () {
            () if has(b"word/") => ("a Word document", EXTRACT),
            () if has(b"xl/") => ("an Excel workbook", "save it as CSV first"),
            () if has(b"ppt/") => ("a PowerPoint file", EXTRACT),
            () if has(b"application/epub+zip") => ("an EPUB book", EXTRACT),
            () if has(b"application/vnd.oasis.opendocument") => ("an OpenDocument file", EXTRACT),
            () => ("a zip archive", UNPACK),
        });
    }
    MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, kind)| *kind)
}

/// The order of bytes of UTF-16, if it is that: by its mark, or since one side of nearly all pairs is zero, as where most
/// characters are Latin, and none of the other.
fn utf16_order(bytes: &[u8]) -> Option<fn([u8; 2]) -> u16> {
    let (little, big): (fn([u8; 2]) -> u16, fn([u8; 2]) -> u16) = (u16::from_le_bytes, u16::from_be_bytes);
    match bytes {
        [0xff, 0xfe, ..] => return Some(little),
        [0xfe, 0xff, ..] => return Some(big),
        _ => {}
    }
    let head = &bytes[..bytes.len().min(4096)];
    let pairs = head.len() / 2;
    let zeros = |side: usize| head.iter().skip(side).step_by(2).filter(|byte| **byte == 0).count();
    match (zeros(0), zeros(1)) {
        (0, n) if pairs > 0 && 4 * n >= 3 * pairs => Some(little),
        (n, 0) if pairs > 0 && 4 * n >= 3 * pairs => Some(big),
        _ => None,
    }
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
        // Other scripts are no longer half zeros, and then need the mark.
        assert_eq!(decode(utf16("\u{feff}Война и мир", u16::to_le_bytes), "f").unwrap(), "Война и мир");
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
            // Half of a character at the end.
            (b"\xff\xfea\0b".to_vec(), "a binary file"),
        ] {
            let error = decode(bytes, "notes.txt").unwrap_err().to_string();
            assert!(error.starts_with("notes.txt: ") && error.contains(says), "{error}");
        }
        let error = decode(b"caf\xe9 au lait".to_vec(), "f").unwrap_err().to_string();
        assert!(error.contains("byte 3 is 0xe9") && error.contains("iconv"), "{error}");
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
