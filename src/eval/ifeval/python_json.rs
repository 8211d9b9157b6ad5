//! The texts that `json.loads` of Python accepts: JSON, and beside it `NaN`, `Infinity`, lone surrogates in
//! escapes and numbers of any size, but no whole number of more than 4300 digits.

/// The most digits of a whole number that Python converts.
const MAX_DIGITS: usize = 4300;

/// Whether `json.loads` accepts a text.
pub(super) fn is_json(text: &str) -> bool {
    Reader { bytes: text.as_bytes(), at: 0 }.document().is_some()
}

/// An open array or object.
enum Open {
    Array,
    Object,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Each method returns `None` where Python raises an error.
impl Reader<'_> {
    /// One value and nothing after it. Nesting is kept in a list, so that no depth ends the process.
    fn document(&mut self) -> Option<()> {
        let mut open = Vec::new();
        loop {
            self.spaces();
            if self.begin(&mut open)? {
                continue;
            }
            if self.end(&mut open)? {
                return (self.at == self.bytes.len()).then_some(());
            }
        }
    }

    /// Reads a value up to the place of its first inner value. Returns whether there is one.
    fn begin(&mut self, open: &mut Vec<Open>) -> Option<bool> {
        match self.peek()? {
            b'{' => {
                self.at += 1;
                self.spaces();
                if self.take(b'}') {
                    return Some(false);
                }
                self.key()?;
                open.push(Open::Object);
                Some(true)
            }
            b'[' => {
                self.at += 1;
                self.spaces();
                if self.take(b']') {
                    return Some(false);
                }
                open.push(Open::Array);
                Some(true)
            }
            b'"' => self.string().map(|()| false),
            _ => self.word().or_else(|| self.number()).map(|()| false),
        }
    }

    /// Reads what follows a value. Returns whether the outermost value has ended.
    fn end(&mut self, open: &mut Vec<Open>) -> Option<bool> {
        loop {
            self.spaces();
            let close = match open.last() {
                None => return Some(true),
                Some(Open::Array) => b']',
                Some(Open::Object) => b'}',
            };
            if self.take(close) {
                open.pop();
                continue;
            }
            if !self.take(b',') {
                return None;
            }
            if close == b'}' {
                self.spaces();
                self.key()?;
            }
            return Some(false);
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn spaces(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// A key with its colon.
    fn key(&mut self) -> Option<()> {
        self.string()?;
        self.spaces();
        self.take(b':').then_some(())
    }

    fn string(&mut self) -> Option<()> {
        if !self.take(b'"') {
            return None;
        }
        loop {
            let byte = self.peek()?;
            self.at += 1;
            match byte {
                b'"' => return Some(()),
                b'\\' => self.escape()?,
                0..0x20 => return None,
                _ => {}
            }
        }
    }

    fn escape(&mut self) -> Option<()> {
        let byte = self.peek()?;
        self.at += 1;
        match byte {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'u' => {
                let digits = self.bytes.get(self.at..self.at + 4)?;
                self.at += 4;
                digits.iter().all(u8::is_ascii_hexdigit).then_some(())
            }
            _ => None,
        }
    }

    fn word(&mut self) -> Option<()> {
        let words: [&[u8]; 6] = [b"null", b"true", b"false", b"NaN", b"Infinity", b"-Infinity"];
        let word = words.into_iter().find(|word| self.bytes[self.at..].starts_with(word))?;
        self.at += word.len();
        Some(())
    }

    /// A number. Characters that cannot follow it are found by the caller.
    fn number(&mut self) -> Option<()> {
        self.take(b'-');
        let whole = if self.take(b'0') { 1 } else { self.digits() };
        if whole == 0 {
            return None;
        }
        let start = self.at;
        if self.take(b'.') && self.digits() == 0 {
            self.at = start;
            return Some(());
        }
        let before_exponent = self.at;
        if self.take(b'e') || self.take(b'E') {
            let _sign = self.take(b'+') || self.take(b'-');
            if self.digits() == 0 {
                self.at = before_exponent;
            }
        }
        (self.at > start || whole <= MAX_DIGITS).then_some(())
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - start
    }
}
