//! A scanner of one call: a JSON object with a name and arguments, read in pieces. The arguments are passed
//! on as they are written, while they are written.

/// Members of a call. Others have no meaning.
const MEMBERS: [&str; 5] = ["name", "arguments", "parameters", "id", "type"];

/// The result of one character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scanned {
    /// The object goes on.
    Open,
    /// The object has ended with this character.
    Closed,
    /// The character cannot stand here.
    Broken,
}

/// Place of the next character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before `{`.
    Object,
    /// Before a member's name, or the object's end.
    Key,
    /// Within a member's name.
    InKey,
    /// Before `:`.
    Colon,
    /// Before a value.
    Value,
    /// Within a value.
    InValue,
    /// After a value.
    Comma,
}

/// The member that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    Name,
    Arguments,
    Other,
}

/// Reads one call.
#[derive(Debug, Clone)]
pub(super) struct CallScanner {
    place: Place,
    member: Member,
    /// Text of the key or of the name, as it is written, without quotes.
    text: String,
    /// Nested objects and arrays around the next character of a value.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Name of the function, once its string has ended.
    pub(super) name: Option<String>,
    /// Arguments that have not been taken.
    pub(super) arguments: String,
    /// Whether the arguments are an object or an array, which can be passed on in pieces. A string contains
    /// JSON of its own.
    composite: bool,
    /// Whether a member with arguments has begun.
    pub(super) has_arguments: bool,
    /// Whether the last member is none of [`MEMBERS`].
    pub(super) unknown_member: bool,
}

impl CallScanner {
    pub(super) fn new() -> Self {
        Self {
            place: Place::Object,
            member: Member::Other,
            text: String::new(),
            depth: 0,
            in_string: false,
            escaped: false,
            name: None,
            arguments: String::new(),
            composite: false,
            has_arguments: false,
            unknown_member: false,
        }
    }

    /// Whether the object has not begun.
    pub(super) fn is_new(&self) -> bool {
        self.place == Place::Object
    }

    /// Takes the arguments that can be passed on.
    pub(super) fn take_arguments(&mut self) -> String {
        let reading = self.member == Member::Arguments && self.place == Place::InValue;
        if reading && !self.composite { String::new() } else { std::mem::take(&mut self.arguments) }
    }

    /// Reads the next character.
    pub(super) fn push(&mut self, c: char) -> Scanned {
        match self.place {
            Place::InKey => self.key(c),
            Place::InValue => self.value(c),
            Place::Value if !c.is_whitespace() => self.begin_value(c),
            _ if c.is_whitespace() => Scanned::Open,
            Place::Object if c == '{' => self.go(Place::Key),
            Place::Key if c == '"' => self.go(Place::InKey),
            Place::Colon if c == ':' => self.go(Place::Value),
            Place::Comma if c == ',' => self.go(Place::Key),
            Place::Key | Place::Comma if c == '}' => Scanned::Closed,
            _ => Scanned::Broken,
        }
    }

    fn go(&mut self, place: Place) -> Scanned {
        self.place = place;
        Scanned::Open
    }

    fn key(&mut self, c: char) -> Scanned {
        if c != '"' {
            self.text.push(c);
            return Scanned::Open;
        }
        let key = std::mem::take(&mut self.text);
        self.unknown_member = !MEMBERS.contains(&key.as_str());
        self.member = match key.as_str() {
            "name" if self.name.is_none() => Member::Name,
            "arguments" | "parameters" if !self.has_arguments => Member::Arguments,
            _ => Member::Other,
        };
        self.go(Place::Colon)
    }

    fn begin_value(&mut self, c: char) -> Scanned {
        self.place = Place::InValue;
        (self.depth, self.in_string, self.escaped) = (0, false, false);
        if self.member == Member::Arguments {
            self.has_arguments = true;
            self.composite = matches!(c, '{' | '[');
        }
        if self.member == Member::Name && c != '"' {
            return Scanned::Broken;
        }
        self.value(c)
    }

    /// A character of a value, or the one that ends a number or a word.
    fn value(&mut self, c: char) -> Scanned {
        if self.in_string {
            self.keep(c);
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => {
                    self.in_string = false;
                    return if self.depth == 0 { self.end_value() } else { Scanned::Open };
                }
                _ => {}
            }
            return Scanned::Open;
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' if self.depth > 0 => {
                self.keep(c);
                self.depth -= 1;
                return if self.depth == 0 { self.end_value() } else { Scanned::Open };
            }
            // The end of a number or of a word, which belongs to the object.
            '}' | ',' if self.depth == 0 => {
                self.end_value();
                return self.push(c);
            }
            c if c.is_whitespace() && self.depth == 0 => return self.end_value(),
            c if c.is_whitespace() || c.is_ascii_alphanumeric() || ",:.+-".contains(c) => {}
            _ => return Scanned::Broken,
        }
        self.keep(c);
        Scanned::Open
    }

    fn keep(&mut self, c: char) {
        match self.member {
            Member::Name => self.text.push(c),
            Member::Arguments => self.arguments.push(c),
            Member::Other => {}
        }
    }

    fn end_value(&mut self) -> Scanned {
        self.place = Place::Comma;
        let unquoted = |text: &str| serde_json::from_str::<String>(text).ok();
        match self.member {
            Member::Name => match unquoted(&std::mem::take(&mut self.text)) {
                Some(name) if !name.is_empty() => self.name = Some(name),
                _ => return Scanned::Broken,
            },
            Member::Arguments if !self.composite => {
                let text = unquoted(&self.arguments).unwrap_or_else(|| self.arguments.clone());
                let nothing = text.trim().is_empty() || text == "null";
                self.arguments = if nothing { "{}".to_owned() } else { text };
            }
            Member::Arguments | Member::Other => {}
        }
        self.member = Member::Other;
        Scanned::Open
    }
}
