//! LongBench's classification score (`trec`, `lsht`).

/// One over the number of classes the prediction names, if the answer is among them; else 0.
///
/// Names that are part of the answer are taken off the list first, *while it is being walked*: after a removal the next name
/// is skipped, as in the published loop.
pub fn classification(prediction: &str, answer: &str, classes: &[String]) -> f64 {
    let mut named: Vec<&str> =
        classes.iter().map(String::as_str).filter(|c| prediction.contains(c)).collect();
    let mut at = 0;
    while let Some(&name) = named.get(at) {
        if answer.contains(name) && name != answer {
            // The first of that name goes, which need not be the one looked at.
            if let Some(first) = named.iter().position(|n| *n == name) {
                named.remove(first);
            }
        }
        at += 1;
    }
    if named.contains(&answer) { 1.0 / named.len() as f64 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(prediction: &str, answer: &str, classes: &[&str]) -> f64 {
        let classes: Vec<String> = classes.iter().map(ToString::to_string).collect();
        classification(prediction, answer, &classes)
    }

    #[test]
    fn shared_among_the_classes_named() {
        assert_eq!(score("Fruit or Tool", "Tool", &["Fruit", "Tool", "Sea"]), 0.5);
        assert_eq!(score("Fruit", "Tool", &["Fruit", "Tool"]), 0.0);
    }

    #[test]
    fn after_a_removal_the_next_name_is_skipped() {
        assert_eq!(score("hot dog bun", "hot dog bun", &["hot", "dog", "hot dog bun"]), 0.5);
        assert_eq!(score("hot dog bun", "hot dog bun", &["hot", "hot dog bun", "dog"]), 1.0);
        assert_eq!(score("wxyz", "wxyz", &["w", "wx", "wxy", "wxyz"]), 0.5);
    }

    #[test]
    fn a_class_listed_twice_counts_twice() {
        assert_eq!(score("B", "B", &["B", "B"]), 0.5);
        // The first is taken off, the second skipped.
        assert_eq!(score("A B", "A B", &["A", "x", "A", "A B"]), 0.5);
    }

    #[test]
    fn the_empty_class_is_in_everything() {
        assert_eq!(score("B", "B", &["", "B"]), 1.0);
    }
}
