//! Formatting of one value: Python's format specifications (`:>8.2f`), and `%` on strings.

use minijinja::{Error, State, Value};

use super::limits::{charge, repeated};
use super::objects::{Kind, SequenceKind, error, float, index, iterate, type_error};
use super::repr::{float_text, repr, to_str, with_exponent};
use super::strings::named;

/// The conversion of a field: `!s`, `!r` or `!a`.
pub(super) fn convert(value: &Value, conversion: char) -> Result<String, Error> {
    match conversion {
        's' => to_str(value),
        'r' => repr(value),
        'a' => repr(value).map(|text| ascii(&text)),
        _ => Err(error(format!("ValueError: Unknown conversion specifier '{conversion}'"))),
    }
}

/// Text with characters outside ASCII escaped as Python's `ascii` does.
fn ascii(text: &str) -> String {
    let escape = |c: char| match u32::from(c) {
        0..=0x7f => c.to_string(),
        code @ 0x80..=0xff => format!("\\x{code:02x}"),
        code @ 0x100..=0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    };
    text.chars().map(escape).collect()
}

/// A format specification: `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
#[derive(Debug, Default, Clone)]
struct Spec {
    fill: char,
    align: Option<char>,
    sign: Option<char>,
    alternative: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    fn parse(spec: &str) -> Result<Self, Error> {
        let mut rest: Vec<char> = spec.chars().rev().collect();
        let mut parsed = Self { fill: ' ', ..Self::default() };
        let is_align = |c: Option<&char>| matches!(c, Some('<' | '>' | '=' | '^'));
        if rest.len() > 1 && is_align(rest.get(rest.len() - 2)) {
            parsed.fill = rest.pop().unwrap_or(' ');
            parsed.align = rest.pop();
        } else if is_align(rest.last()) {
            parsed.align = rest.pop();
        }
        let take = |rest: &mut Vec<char>, set: &[char]| {
            let found = rest.last().is_some_and(|c| set.contains(c));
            if found { rest.pop() } else { None }
        };
        parsed.sign = take(&mut rest, &['+', '-', ' ']);
        parsed.alternative = take(&mut rest, &['#']).is_some();
        parsed.zero = take(&mut rest, &['0']).is_some();
        let number = |rest: &mut Vec<char>| {
            let mut digits = String::new();
            while let Some(digit) = take(rest, &['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']) {
                digits.push(digit);
            }
            digits
        };
        parsed.width = size(&number(&mut rest), 0)?;
        parsed.grouping = take(&mut rest, &[',', '_']);
        if take(&mut rest, &['.']).is_some() {
            let digits = number(&mut rest);
            if digits.is_empty() {
                return Err(error("ValueError: Format specifier missing precision"));
            }
            parsed.precision = Some(size(&digits, 0)?);
        }
        parsed.kind = rest.pop();
        if rest.is_empty() { Ok(parsed) } else { Err(error("ValueError: Invalid format specifier")) }
    }
}

/// The largest width and precision. Rust's formatting panics above 65,535.
const MAX_SIZE: usize = 50_000;

/// A width or precision, bounded.
fn size(digits: &str, default: usize) -> Result<usize, Error> {
    if digits.is_empty() {
        return Ok(default);
    }
    let size = digits.parse().ok().filter(|&size| size <= MAX_SIZE);
    size.ok_or_else(|| error(format!("a width or precision above {MAX_SIZE}")))
}

/// Python's `format(value, spec)`.
pub(super) fn with_spec(value: &Value, spec: &str) -> Result<String, Error> {
    let kind = Kind::of(value);
    if kind == Kind::Undefined && !spec.is_empty() {
        return type_error("unsupported format string passed to Undefined.__format__");
    }
    if spec.is_empty() {
        return to_str(value);
    }
    let spec = Spec::parse(spec)?;
    match kind {
        Kind::Str => {
            let invalid = spec.sign.is_some() || spec.grouping.is_some() || spec.align == Some('=');
            if invalid || !matches!(spec.kind, None | Some('s')) {
                return Err(error("ValueError: Invalid format specifier for a string"));
            }
            let text: String = to_str(value)?.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
            align(&spec, "", &text, '<')
        }
        Kind::Bool | Kind::Int | Kind::Float => number(value, kind, &spec),
        _ => type_error(format!("unsupported format string passed to {}.__format__", kind.name())),
    }
}

fn number(value: &Value, kind: Kind, spec: &Spec) -> Result<String, Error> {
    let unknown = |kind: char| Err(error(format!("ValueError: Unknown format code '{kind}'")));
    let integer = index(value);
    let (negative, digits, prefix) = match (integer, spec.kind) {
        (Some(integer), None | Some('d' | 'n' | 'b' | 'o' | 'x' | 'X' | 'c')) => {
            if kind == Kind::Bool && spec.kind.is_none() {
                return align(spec, "", &to_str(value)?, '<');
            }
            if spec.precision.is_some() {
                return Err(error("ValueError: Precision not allowed in integer format specifier"));
            }
            let size = integer.unsigned_abs();
            let (digits, prefix) = match spec.kind {
                Some('b') => (format!("{size:b}"), "0b"),
                Some('o') => (format!("{size:o}"), "0o"),
                Some('x') => (format!("{size:x}"), "0x"),
                Some('X') => (format!("{size:X}"), "0X"),
                Some('c') => (u32::try_from(size).ok().and_then(char::from_u32).into_iter().collect(), ""),
                _ => (size.to_string(), ""),
            };
            (integer < 0, digits, if spec.alternative { prefix } else { "" })
        }
        (_, Some(code)) if !matches!(code, 'e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'n' | '%') => {
            return unknown(code);
        }
        _ => {
            let number = float(value).unwrap_or(f64::NAN);
            let text = float_digits(number.abs(), spec.kind, spec.precision, spec.alternative)?;
            (number.is_sign_negative() && !number.is_nan(), text, "")
        }
    };
    let sign = match (negative, spec.sign) {
        (true, _) => "-",
        (_, Some('+')) => "+",
        (_, Some(' ')) => " ",
        _ => "",
    };
    let digits = match spec.grouping {
        Some(separator) => grouped(&digits, separator, if prefix.is_empty() { 3 } else { 4 }),
        None => digits,
    };
    let zeros = spec.zero && spec.align.is_none();
    let spec = if zeros { Spec { fill: '0', ..spec.clone() } } else { spec.clone() };
    align(&spec, &format!("{sign}{prefix}"), &digits, if zeros { '=' } else { '>' })
}

/// Separates the digits before the point into groups.
fn grouped(digits: &str, separator: char, group: usize) -> String {
    let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
    let (whole, rest) = digits.split_at(end);
    let mut out = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % group == 0 {
            out.push(separator);
        }
        out.push(digit);
    }
    out + rest
}

fn align(spec: &Spec, sign: &str, digits: &str, default: char) -> Result<String, Error> {
    let length = sign.chars().count() + digits.chars().count();
    let missing = spec.width.saturating_sub(length);
    let fill = |count: usize| repeated(&spec.fill.to_string(), count);
    Ok(match spec.align.unwrap_or(default) {
        '<' => format!("{sign}{digits}{}", fill(missing)?),
        '^' => format!("{}{sign}{digits}{}", fill(missing / 2)?, fill(missing - missing / 2)?),
        '=' => format!("{sign}{}{digits}", fill(missing)?),
        _ => format!("{}{sign}{digits}", fill(missing)?),
    })
}

/// The digits of a float that is not negative.
fn float_digits(
    number: f64,
    kind: Option<char>,
    precision: Option<usize>,
    alternative: bool,
) -> Result<String, Error> {
    let upper = kind.is_some_and(|kind| kind.is_ascii_uppercase());
    if !number.is_finite() {
        let text = float_text(number);
        return Ok(if upper { text.to_uppercase() } else { text });
    }
    let digits = precision.unwrap_or(6);
    let text = match kind.map(|kind| kind.to_ascii_lowercase()) {
        Some('f') => format!("{number:.digits$}"),
        Some('%') => format!("{:.digits$}%", number * 100.0),
        Some('e') => exponential(number, digits),
        None if precision.is_none() => float_text(number),
        code => {
            let general = general(number, digits.max(1), alternative);
            // Without a type there is at least one digit after the point.
            let whole = code.is_none() && !general.contains(['.', 'e']);
            if whole { general + ".0" } else { general }
        }
    };
    Ok(if upper { text.to_uppercase() } else { text })
}

fn exponential(number: f64, digits: usize) -> String {
    let text = format!("{number:.digits$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    with_exponent(mantissa, exponent.parse().unwrap_or(0))
}

/// C's `%g`.
fn general(number: f64, digits: usize, keep_zeros: bool) -> String {
    let scientific = exponential(number, digits - 1);
    let exponent: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let trim = |text: &str| {
        let keeps = keep_zeros || !text.contains('.');
        if keeps { text.to_owned() } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
    };
    if exponent < -4 || exponent >= digits as i32 {
        let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, ""));
        return format!("{}e{exponent}", trim(mantissa));
    }
    let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
    trim(&format!("{number:.decimals$}"))
}

/// Python's `template % values`.
pub(super) fn percent(state: &State, template: &Value, values: &Value) -> Result<Value, Error> {
    let kind = Kind::of(values);
    let mut list = if kind.is_tuple() { iterate(values)? } else { vec![values.clone()] };
    list.reverse();
    let mut source = Values { list, map: (kind == Kind::Dict).then(|| values.clone()), used_map: false };
    let template = to_str(template)?;
    let mut rest = template.as_str();
    let mut out = String::new();
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let (field, after) = conversion(&rest[at + 1..], &mut source)?;
        charge(state, field.len() as u64)?;
        out.push_str(&field);
        rest = after;
    }
    let all_used = source.list.is_empty() || source.map.is_some() || source.used_map;
    // What Python takes for a mapping, such as a list, may stay unused.
    let range = Kind::Sequence(SequenceKind::Range);
    if !all_used && !matches!(kind, Kind::List | Kind::Undefined) && kind != range {
        return type_error("not all arguments converted during string formatting");
    }
    Ok(Value::from(out + rest))
}

/// The values that `%` inserts.
struct Values {
    /// Values without names, the next one last.
    list: Vec<Value>,
    map: Option<Value>,
    used_map: bool,
}

impl Values {
    fn next(&mut self) -> Result<Value, Error> {
        self.list.pop().ok_or_else(|| error("TypeError: not enough arguments for format string"))
    }
}

/// One conversion after its `%`. Returns its text and what follows.
fn conversion<'a>(text: &'a str, values: &mut Values) -> Result<(String, &'a str), Error> {
    let mut rest = text;
    let mut named_value = None;
    if let Some(after) = rest.strip_prefix('(') {
        let Some((name, after)) = after.split_once(')') else {
            return Err(error("ValueError: incomplete format key"));
        };
        let Some(map) = &values.map else { return type_error("format requires a mapping") };
        named_value = Some(named(map, name)?);
        values.used_map = true;
        rest = after;
    }
    let flags = rest.len() - rest.trim_start_matches(['-', '+', ' ', '#', '0']).len();
    let (flags, after) = rest.split_at(flags);
    rest = after;
    let mut number = |rest: &mut &'a str| -> Result<Option<i128>, Error> {
        if let Some(after) = rest.strip_prefix('*') {
            *rest = after;
            return index(&values.next()?).map(Some).ok_or_else(|| error("TypeError: * wants int"));
        }
        let length = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (digits, after) = rest.split_at(length);
        *rest = after;
        Ok(if digits.is_empty() { None } else { Some(size(digits, 0)? as i128) })
    };
    let width = number(&mut rest)?.unwrap_or(0);
    let mut precision = None;
    if let Some(after) = rest.strip_prefix('.') {
        rest = after;
        precision = Some(number(&mut rest)?.unwrap_or(0).max(0));
    }
    rest = rest.trim_start_matches(['h', 'l', 'L']);
    let Some(code) = rest.chars().next() else { return Err(error("ValueError: incomplete format")) };
    let after = &rest[code.len_utf8()..];
    if code == '%' {
        return Ok(("%".to_owned(), after));
    }
    let value = match named_value {
        Some(value) => value,
        None => values.next()?,
    };
    let left = flags.contains('-') || width < 0;
    let is_number = !matches!(code, 's' | 'r' | 'a' | 'c');
    let spec = Spec {
        fill: ' ',
        align: left.then_some('<'),
        sign: ['+', ' '].into_iter().find(|&sign| flags.contains(sign)),
        alternative: flags.contains('#'),
        zero: flags.contains('0') && !left && is_number,
        width: size(&width.unsigned_abs().to_string(), 0)?,
        grouping: None,
        precision: precision.map(|precision| size(&precision.to_string(), 0)).transpose()?,
        kind: Some(code),
    };
    percent_value(&value, code, spec).map(|text| (text, after))
}

fn percent_value(value: &Value, code: char, spec: Spec) -> Result<String, Error> {
    let numeric = matches!(Kind::of(value), Kind::Bool | Kind::Int | Kind::Float);
    match code {
        's' | 'r' | 'a' => {
            let text = convert(value, code)?;
            let text: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
            align(&spec, "", &text, '>')
        }
        'c' => match (index(value), value.as_str()) {
            (Some(_), _) => number(value, Kind::Int, &Spec { precision: None, sign: None, ..spec }),
            (_, Some(text)) if text.chars().count() == 1 => align(&spec, "", text, '>'),
            _ => type_error("%c requires int or char"),
        },
        'd' | 'i' | 'u' | 'o' | 'x' | 'X' => {
            let whole = match index(value) {
                Some(integer) => Some(integer),
                None if matches!(code, 'd' | 'i' | 'u') => {
                    float(value).filter(|number| number.is_finite()).map(|number| number.trunc() as i128)
                }
                None => None,
            };
            let Some(whole) = whole else {
                let kind = Kind::of(value).name();
                return type_error(format!("%{code} format: a real number is required, not {kind}"));
            };
            let kind = if matches!(code, 'i' | 'u') { 'd' } else { code };
            let digits = spec.precision;
            let mut spec = Spec { kind: Some(kind), precision: None, ..spec };
            if let Some(digits) = digits {
                // The precision of an integer is its least number of digits.
                let width = spec.width;
                let sign = usize::from(whole < 0 || spec.sign.is_some());
                let inner = Spec { width: digits + sign, zero: true, align: None, ..spec.clone() };
                let text = number(&super::objects::integer(whole), Kind::Int, &inner)?;
                spec.width = width;
                return align(&spec, "", &text, '>');
            }
            number(&super::objects::integer(whole), Kind::Int, &spec)
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' if numeric => {
            number(&Value::from(float(value).unwrap_or(f64::NAN)), Kind::Float, &spec)
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            type_error(format!("must be real number, not {}", Kind::of(value).name()))
        }
        _ => Err(error(format!("ValueError: unsupported format character '{code}'"))),
    }
}
