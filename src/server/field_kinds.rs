//! The types of request fields, each with its range: they read a value and describe it as a JSON schema.

use std::marker::PhantomData;

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::field_table::{Field, Kind, Table};
use super::fields::{Fields, integer, wrong_type};
use super::unsupported;

/// An integer in a range.
#[derive(Debug)]
pub(crate) struct Int {
    least: i128,
    most: i128,
}

/// A field that is an integer from `least` to `most`.
pub(crate) const fn int(least: i128, most: i128) -> Field<Int> {
    Field::new(Int { least, most })
}

impl Kind for Int {
    type Value = i128;

    fn expected(&self) -> String {
        format!("an integer from {} to {}", self.least, self.most)
    }

    fn read(&self, path: &str, value: Value, _: &mut Vec<String>) -> Result<i128, ApiError> {
        let number = integer(&value).ok_or_else(|| wrong_type(path, "an integer", &value))?;
        match number {
            number if (self.least..=self.most).contains(&number) => Ok(number),
            number => Err(ApiError::invalid(path, format!("expected {}, got {number}", self.expected()))),
        }
    }

    fn schema(&self) -> Value {
        // Every bound is between -2^63 and 2^64 - 1.
        let bound =
            |bound: i128| u64::try_from(bound).map_or_else(|_| json!(bound as i64), |bound| json!(bound));
        json!({ "type": "integer", "minimum": bound(self.least), "maximum": bound(self.most) })
    }
}

/// A number in a range.
#[derive(Debug)]
pub(crate) struct Number {
    least: f64,
    most: f64,
    /// Whether `least` itself is out of range.
    above: bool,
}

/// A field that is a number from `least` to `most`.
pub(crate) const fn number(least: f64, most: f64) -> Field<Number> {
    Field::new(Number { least, most, above: false })
}

/// A field that is a number above `least` and at most `most`.
pub(crate) const fn number_above(least: f64, most: f64) -> Field<Number> {
    Field::new(Number { least, most, above: true })
}

impl Kind for Number {
    type Value = f64;

    fn expected(&self) -> String {
        match self.above {
            true => format!("a number above {} and at most {}", self.least, self.most),
            false => format!("a number from {} to {}", self.least, self.most),
        }
    }

    fn read(&self, path: &str, value: Value, _: &mut Vec<String>) -> Result<f64, ApiError> {
        let number = value.as_f64().ok_or_else(|| wrong_type(path, "a number", &value))?;
        match number {
            number if (self.least..=self.most).contains(&number) && !(self.above && number == self.least) => {
                Ok(number)
            }
            number => Err(ApiError::invalid(path, format!("expected {}, got {number}", self.expected()))),
        }
    }

    fn schema(&self) -> Value {
        let least = if self.above { "exclusiveMinimum" } else { "minimum" };
        json!({ "type": "number", least: self.least, "maximum": self.most })
    }
}

/// `true` or `false`.
#[derive(Debug)]
pub(crate) struct Flag;

/// A field that is `true` or `false`.
pub(crate) const fn flag() -> Field<Flag> {
    Field::new(Flag)
}

impl Kind for Flag {
    type Value = bool;

    fn expected(&self) -> String {
        "true or false".to_owned()
    }

    fn read(&self, path: &str, value: Value, _: &mut Vec<String>) -> Result<bool, ApiError> {
        value.as_bool().ok_or_else(|| wrong_type(path, "true or false", &value))
    }

    fn schema(&self) -> Value {
        json!({ "type": "boolean" })
    }
}

/// A string.
#[derive(Debug)]
pub(crate) struct Text {
    /// The least and the greatest number of characters.
    chars: Option<(usize, usize)>,
}

/// A field that is a string.
pub(crate) const fn text() -> Field<Text> {
    Field::new(Text { chars: None })
}

/// A field that is a string of `least` to `most` characters.
pub(crate) const fn text_of(least: usize, most: usize) -> Field<Text> {
    Field::new(Text { chars: Some((least, most)) })
}

impl Kind for Text {
    type Value = String;

    fn expected(&self) -> String {
        "a string".to_owned()
    }

    fn read(&self, path: &str, value: Value, _: &mut Vec<String>) -> Result<String, ApiError> {
        let Value::String(text) = value else { return Err(wrong_type(path, "a string", &value)) };
        if let Some((least, most)) = self.chars {
            let got = text.chars().count();
            if got < least || got > most {
                return Err(ApiError::invalid(
                    path,
                    format!("expected {least} to {most} characters, got {got}"),
                ));
            }
        }
        Ok(text)
    }

    fn schema(&self) -> Value {
        match self.chars {
            Some((0, most)) => json!({ "type": "string", "maxLength": most }),
            Some((least, most)) => json!({ "type": "string", "minLength": least, "maxLength": most }),
            None => json!({ "type": "string" }),
        }
    }
}

/// One of a few words.
#[derive(Debug)]
pub(crate) struct Word {
    words: &'static [&'static str],
    /// Whether another word is valid for other servers, so that it is refused as not supported.
    others_exist: bool,
}

/// A field that is one of these words.
pub(crate) const fn word(words: &'static [&'static str]) -> Field<Word> {
    Field::new(Word { words, others_exist: false })
}

/// A field of which only these words are supported.
pub(crate) const fn supported_word(words: &'static [&'static str]) -> Field<Word> {
    Field::new(Word { words, others_exist: true })
}

impl Kind for Word {
    type Value = &'static str;

    fn expected(&self) -> String {
        match self.words {
            [only] => format!("\"{only}\""),
            words => format!("one of {}", words.join(", ")),
        }
    }

    fn read(&self, path: &str, value: Value, _: &mut Vec<String>) -> Result<&'static str, ApiError> {
        let Value::String(given) = &value else { return Err(wrong_type(path, &self.expected(), &value)) };
        if let Some(known) = self.words.iter().find(|word| *word == given) {
            return Ok(known);
        }
        let given: String = given.chars().take(64).collect();
        match self.others_exist {
            true => {
                let text = format!("not supported: expected {}, got \"{given}\"", self.expected());
                Err(ApiError::unsupported(path, text))
            }
            false => Err(ApiError::invalid(path, format!("expected {}, got \"{given}\"", self.expected()))),
        }
    }

    fn schema(&self) -> Value {
        json!({ "type": "string", "enum": self.words })
    }
}

/// An array, whose items the validation reads.
#[derive(Debug)]
pub(crate) struct List {
    least: usize,
    most: usize,
    /// The items, in the plural.
    items: &'static str,
    item: fn() -> Value,
}

/// A field that is an array of `least` to `most` items. `item` is their schema.
pub(crate) const fn list(least: usize, most: usize, items: &'static str, item: fn() -> Value) -> Field<List> {
    Field::new(List { least, most, items, item })
}

impl Kind for List {
    type Value = Vec<Value>;

    fn expected(&self) -> String {
        format!("an array of {}", self.items)
    }

    fn read(&self, path: &str, value: Value, _: &mut Vec<String>) -> Result<Vec<Value>, ApiError> {
        let Value::Array(items) = value else { return Err(wrong_type(path, &self.expected(), &value)) };
        let (Self { least, most, items: noun, .. }, got) = (self, items.len());
        match got {
            got if got > *most && *least == 0 => {
                Err(ApiError::invalid(path, format!("expected at most {most} {noun}, got {got}")))
            }
            got if got < *least || got > *most => {
                Err(ApiError::invalid(path, format!("expected {least} to {most} {noun}, got {got}")))
            }
            _ => Ok(items),
        }
    }

    fn schema(&self) -> Value {
        let mut schema = json!({ "type": "array", "items": (self.item)(), "maxItems": self.most });
        if self.least > 0 {
            schema["minItems"] = json!(self.least);
        }
        schema
    }
}

/// An object with any names, whose values the validation reads.
#[derive(Debug)]
pub(crate) struct Pairs {
    most: usize,
    value: fn() -> Value,
}

/// A field that is an object with at most `most` names of the client. `value` is the schema of their values.
pub(crate) const fn pairs(most: usize, value: fn() -> Value) -> Field<Pairs> {
    Field::new(Pairs { most, value })
}

impl Kind for Pairs {
    type Value = Map<String, Value>;

    fn expected(&self) -> String {
        "an object".to_owned()
    }

    fn read(&self, path: &str, value: Value, _: &mut Vec<String>) -> Result<Map<String, Value>, ApiError> {
        let Value::Object(map) = value else { return Err(wrong_type(path, "an object", &value)) };
        match map.len() {
            got if got > self.most => {
                Err(ApiError::invalid(path, format!("expected at most {} entries, got {got}", self.most)))
            }
            _ => Ok(map),
        }
    }

    fn schema(&self) -> Value {
        let mut schema = json!({ "type": "object", "additionalProperties": (self.value)() });
        if self.most < usize::MAX {
            schema["maxProperties"] = json!(self.most);
        }
        schema
    }
}

/// A value of several types, which the validation reads.
#[derive(Debug)]
pub(crate) struct Any {
    expected: &'static str,
    schema: fn() -> Value,
}

/// A field of several types. `expected` names them for errors.
pub(crate) const fn any(expected: &'static str, schema: fn() -> Value) -> Field<Any> {
    Field::new(Any { expected, schema })
}

impl Kind for Any {
    type Value = Value;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn read(&self, _: &str, value: Value, _: &mut Vec<String>) -> Result<Value, ApiError> {
        Ok(value)
    }

    fn schema(&self) -> Value {
        (self.schema)()
    }
}

/// An object with a table of its own.
#[derive(Debug)]
pub(crate) struct Object<T> {
    /// Whether an unknown field is refused. Otherwise it is named as ignored.
    exact: bool,
    table: PhantomData<T>,
}

/// A field that is an object with the fields of the table `T`. Unknown fields are named as ignored.
pub(crate) const fn object<T: Table>() -> Field<Object<T>> {
    Field::new(Object { exact: false, table: PhantomData })
}

/// A field that is an object with the fields of the table `T` and no others.
pub(crate) const fn exact_object<T: Table>() -> Field<Object<T>> {
    Field::new(Object { exact: true, table: PhantomData })
}

impl<T: Table> Kind for Object<T> {
    type Value = T;

    fn expected(&self) -> String {
        "an object".to_owned()
    }

    fn read(&self, path: &str, value: Value, ignored: &mut Vec<String>) -> Result<T, ApiError> {
        let mut fields = Fields::at(path, value)?;
        let table = T::take(&mut fields)?;
        if self.exact {
            unsupported::nothing_left(&fields)?;
        }
        ignored.extend(unsupported::ignored(fields)?);
        Ok(table)
    }

    fn schema(&self) -> Value {
        let mut schema = T::schema();
        if self.exact {
            schema["additionalProperties"] = json!(false);
        }
        schema
    }
}
