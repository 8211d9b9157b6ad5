//! Text of a server for a terminal.

use std::borrow::Cow;

/// The text with visible signs in place of control characters, except line breaks and tabs: a terminal would
/// take them for commands. C0 controls and DEL become their Unicode pictures, C1 controls the replacement
/// character.
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    let is_harmless = |c: char| !c.is_control() || c == '\n' || c == '\t';
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let sign = |c: char| match c {
        c if is_harmless(c) => c,
        '\u{7f}' => '\u{2421}',
        '\0'..='\u{1f}' => char::from_u32(0x2400 + u32::from(c)).unwrap_or(char::REPLACEMENT_CHARACTER),
        _ => char::REPLACEMENT_CHARACTER,
    };
    Cow::Owned(text.chars().map(sign).collect())
}
