//! Text that others wrote, made fit for a line of a terminal.

/// The text, where control characters are written out: they could steer the terminal, or begin a line of their own.
pub(crate) fn plain(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut plain, char| {
        if char.is_control() {
            plain.extend(char.escape_default())
        } else {
            plain.push(char)
        }
        plain
    })
}
