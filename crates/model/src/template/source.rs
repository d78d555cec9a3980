//! What a template's text must become before it is compiled: tags that training code adds to Jinja, line ends.

/// Line ends as Jinja reads them, and `{% generation %}` as a tag that minijinja knows.
///
/// transformers marks what the model says with `{% generation %}` ... `{% endgeneration %}`, which renders what stands within.
/// A condition that always holds does the same, and treats white space around it alike.
pub(super) fn prepared(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    if !source.contains("generation") {
        return source;
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = ["{{", "{%", "{#"].iter().filter_map(|open| rest.find(open)).min() {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = tag_length(rest);
        let tag = &rest[..length];
        match keyword(tag) {
            Some("generation") => out.push_str(&tag.replacen("generation", "if true", 1)),
            Some("endgeneration") => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            Some("raw") => {
                // What is raw holds no tags.
                let end = end_of_raw(&rest[length..]).map_or(rest.len(), |end| length + end);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
                continue;
            }
            _ => out.push_str(tag),
        }
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// Length of the tag, expression or comment that `text` begins with; all of it where it is not closed.
fn tag_length(text: &str) -> usize {
    let close = match text.get(..2) {
        Some("{{") => "}}",
        Some("{#") => return text.find("#}").map_or(text.len(), |at| at + 2),
        _ => "%}",
    };
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if text[at..].starts_with(close) => return at + 2,
            None => {}
        }
    }
    text.len()
}

/// The word of a tag `{% word %}` that has nothing else in it.
fn keyword(tag: &str) -> Option<&str> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    Some(inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim())
}

/// Bytes up to and with the tag that ends a raw block.
fn end_of_raw(text: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + text[from..].find("{%")?;
        let length = tag_length(&text[at..]);
        if keyword(&text[at..at + length]) == Some("endraw") {
            return Some(at + length);
        }
        from = at + 2;
    }
}
