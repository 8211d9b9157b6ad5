//! Python's `strftime`, which chat templates use for dates.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Directives of `strftime` that do not depend on a locale.
const DIRECTIVES: &str = "YymdeHIMSjpBbhAaFTZz%";

/// `datetime.strftime` in UTC for the directives in [`DIRECTIVES`], also without padding (`%-d`). Other
/// directives stay as they are. `unix_seconds` counts seconds since 1970; a time after `Timestamp::MAX`, the
/// end of the year 9999, is replaced by `Timestamp::MAX`.
pub fn strftime(format: &str, unix_seconds: u64) -> String {
    let seconds = i64::try_from(unix_seconds).unwrap_or(i64::MAX);
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).to_zoned_datetime(TimeZone::UTC);
    // Escapes every directive outside `DIRECTIVES`, because jiff knows some of them.
    let mut escaped = String::with_capacity(format.len());
    let mut characters = format.chars().peekable();
    while let Some(character) = characters.next() {
        escaped.push(character);
        if character == '%' {
            let flag = characters.next_if_eq(&'-');
            let directive = characters.next();
            if !directive.is_some_and(|directive| DIRECTIVES.contains(directive)) {
                escaped.push('%');
            }
            escaped.extend(flag.into_iter().chain(directive));
        }
    }
    jiff::fmt::strtime::format(&escaped, &time).unwrap_or_else(|_| format.to_owned())
}
