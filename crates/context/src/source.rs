//! Which token of which source file a slot of the store holds.

/// Where a token came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Index into [`SourceMap::names`].
    pub source: u32,
    /// First byte in the source.
    pub start: u32,
    /// One past its last byte.
    pub end: u32,
}

/// The origins of all tokens of a session, by token index.
#[derive(Clone, Debug, Default)]
pub struct SourceMap {
    names: Vec<String>,
    /// A token that stands in no source (begin token, template, question, answer) has none.
    origins: Vec<Option<Origin>>,
}

impl SourceMap {
    /// Registers a source and returns its index.
    pub fn add_source(&mut self, name: impl Into<String>) -> u32 {
        self.names.push(name.into());
        (self.names.len() - 1) as u32
    }

    /// Names of the sources.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Appends the origin of the next token.
    pub fn push(&mut self, origin: Option<Origin>) {
        self.origins.push(origin);
    }

    /// The origin of a token, if it stands in a source.
    pub fn origin(&self, token: usize) -> Option<Origin> {
        self.origins.get(token).copied().flatten()
    }

    /// Tokens recorded.
    pub fn len(&self) -> usize {
        self.origins.len()
    }

    /// Whether no token is recorded.
    pub fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    /// Forgets every token from `n` on.
    pub fn truncate(&mut self, n: usize) {
        self.origins.truncate(n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_where_each_token_came_from() {
        let mut map = SourceMap::default();
        let book = map.add_source("book.txt");
        map.push(None);
        map.push(Some(Origin { source: book, start: 0, end: 4 }));
        assert_eq!(map.origin(0), None);
        assert_eq!(map.names()[map.origin(1).unwrap().source as usize], "book.txt");
        map.truncate(1);
        assert_eq!((map.len(), map.origin(1)), (1, None));
    }
}
