//! The answer as it comes: pieces on stdout, until nobody takes them any more.

use crate::terminal::shown;
use reattention_engine::Cancel;
use std::io::Write;

/// The answer on stdout as it comes.
pub(super) struct Live<W> {
    out: W,
    is_terminal: bool,
    /// Nothing is written: the answer comes as JSON, whole.
    pub(super) is_off: bool,
    has_started: bool,
    /// Why nobody takes the answer any more.
    pub(super) broken: Option<std::io::Error>,
}

impl<W: Write> Live<W> {
    pub(super) fn new(out: W, is_terminal: bool) -> Self {
        Self { out, is_terminal, is_off: false, has_started: false, broken: None }
    }

    /// Writes a piece of the answer. Once nobody takes it any more, `cancel` ends the work.
    pub(super) fn write(&mut self, text: &str, cancel: &Cancel) {
        if self.is_off || self.broken.is_some() {
            return;
        }
        let text = if self.has_started { text } else { text.trim_start() };
        self.has_started |= !text.is_empty();
        // Escapes are made of whole characters, so pieces of an answer need not wait for one another.
        let written = match self.is_terminal {
            true => self.out.write_all(shown(text).as_bytes()),
            false => self.out.write_all(text.as_bytes()),
        };
        if let Err(error) = written.and_then(|()| self.out.flush()) {
            self.broken = Some(error);
            cancel.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes one piece, as a pipe whose reader leaves.
    struct Leaves(Vec<u8>);

    impl Write for Leaves {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if !self.0.is_empty() {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            self.0.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_answer_that_nobody_takes_is_cancelled() {
        let (mut live, cancel) = (Live::new(Leaves(Vec::new()), false), Cancel::default());
        live.write(" one", &cancel);
        assert!(!cancel.is_cancelled() && live.out.0 == b"one");
        live.write(" two", &cancel);
        assert!(cancel.is_cancelled());
        assert_eq!(live.broken.unwrap().kind(), std::io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_terminal_gets_no_escapes_and_a_file_all_bytes() {
        for (is_terminal, wanted) in [(true, "a\\u{1b}[31mb"), (false, "a\u{1b}[31mb")] {
            let (mut out, cancel) = (Vec::new(), Cancel::default());
            let mut live = Live::new(&mut out, is_terminal);
            live.write("a\u{1b}", &cancel);
            live.write("[31mb", &cancel);
            assert_eq!(String::from_utf8(out).unwrap(), wanted);
        }
    }
}
