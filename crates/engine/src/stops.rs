//! Stop strings: where an answer's text ends, and how much of it may be shown before that is known.

/// The text of an answer as it grows, up to the first of some stop strings.
#[derive(Debug)]
pub(crate) struct Stops<'a> {
    strings: &'a [String],
    text: String,
    /// Bytes of the text that were handed out.
    shown: usize,
}

impl<'a> Stops<'a> {
    /// An empty text. `None` if a stop string is empty: every text holds it.
    pub(crate) fn new(strings: &'a [String]) -> Option<Self> {
        let is_sound = strings.iter().all(|s| !s.is_empty());
        is_sound.then(|| Self { strings, text: String::new(), shown: 0 })
    }

    /// Adds a piece, and says whether the text has come to a stop string: it then ends before the earliest.
    pub(crate) fn push(&mut self, piece: &str) -> bool {
        let old = self.text.len();
        self.text.push_str(piece);
        // What was there holds no stop string, so one ends within the piece.
        let found = self.strings.iter().filter_map(|stop| {
            let mut from = old.saturating_sub(stop.len() - 1);
            while !self.text.is_char_boundary(from) {
                from -= 1;
            }
            Some(from + self.text[from..].find(stop.as_str())?)
        });
        match found.min() {
            Some(at) => {
                self.text.truncate(at);
                true
            }
            None => false,
        }
    }

    /// What may be shown and was not yet: what may turn into a stop string is held back.
    pub(crate) fn ready(&mut self) -> &str {
        self.show(self.text.len() - held_back(&self.text, self.strings))
    }

    /// The rest of a text that has come to its end.
    pub(crate) fn rest(&mut self) -> &str {
        self.show(self.text.len())
    }

    /// The text.
    pub(crate) fn into_text(self) -> String {
        self.text
    }

    fn show(&mut self, to: usize) -> &str {
        let from = self.shown.min(to);
        self.shown = self.shown.max(to);
        &self.text[from..to]
    }
}

/// Bytes at the end of `text` that could be the beginning of a stop string.
fn held_back(text: &str, stops: &[String]) -> usize {
    let longest = |stop: &String| {
        (1..stop.len()).rev().find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n])).unwrap_or(0)
    };
    stops.iter().map(longest).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strings(stops: &[&str]) -> Vec<String> {
        stops.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn the_beginning_of_a_stop_string_is_held_back() {
        let stops = strings(&["\nUser:", "END"]);
        assert_eq!(held_back("hello", &stops), 0);
        assert_eq!(held_back("hello\nUs", &stops), 3);
        assert_eq!(held_back("the EN", &stops), 2);
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert!(Stops::new(&strings(&["a", ""])).is_none() && Stops::new(&[]).is_some());
    }

    /// Texts of up to `most` characters of one, two and four bytes.
    fn texts(least: usize, most: usize) -> impl Strategy<Value = String> {
        let letter = proptest::sample::select(vec!['a', 'b', 'é', '\u{1F600}']);
        proptest::collection::vec(letter, least..=most).prop_map(|letters| letters.into_iter().collect())
    }

    proptest! {
        /// Searching only where a piece may have completed a stop string finds what searching the whole text finds, and what
        /// is shown is the text, piece by piece.
        #[test]
        fn a_text_ends_before_the_first_stop_string_however_it_is_cut(
            pieces in proptest::collection::vec(texts(0, 3), 0..30),
            stops in proptest::collection::vec(texts(1, 4), 0..4),
        ) {
            let mut found = Stops::new(&stops).unwrap();
            let (mut whole, mut shown) = (String::new(), String::new());
            for piece in &pieces {
                whole.push_str(piece);
                let first = stops.iter().filter_map(|s| whole.find(s.as_str())).min();
                prop_assert_eq!(found.push(piece), first.is_some());
                if let Some(at) = first {
                    whole.truncate(at);
                    break;
                }
                shown.push_str(found.ready());
                prop_assert!(whole.starts_with(&shown));
            }
            shown.push_str(found.rest());
            prop_assert_eq!(&shown, &whole);
            prop_assert_eq!(found.into_text(), whole);
        }
    }
}
