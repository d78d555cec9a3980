//! What a test does where a tool that it needs is missing.

/// The variable of the environment that names tools which are there: a test that misses one of them fails, where it would
/// otherwise say that it is skipped. Names stand between commas: `compiler`, `nvrtc`, `browser`; `1` is all of them.
pub const REQUIRE_TOOLS: &str = "REATTENTION_REQUIRE_TOOLS";

/// Says that a test is skipped for want of `tool`, and why.
///
/// # Panics
/// If [`REQUIRE_TOOLS`] says that the tool is there.
pub fn skipped(tool: &str, why: &str) {
    let required = std::env::var(REQUIRE_TOOLS).unwrap_or_default();
    let is_required = required.split(',').any(|name| name == "1" || name == tool);
    assert!(!is_required, "{why}; {REQUIRE_TOOLS}={required} says that it must run");
    println!("{why}");
}
