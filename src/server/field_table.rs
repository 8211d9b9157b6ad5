//! The table of request fields. A row has a field's JSON name, its type with its range, its default and a
//! description.
//!
//! The macro [`request_fields`] makes two things of the rows of a table: the struct that a request is read
//! into, and the JSON schema in the OpenAPI document. A field without a row cannot be read, and the document
//! cannot have another range than the reader.
//!
//! A table of its own describes each object: the body, or an object within it. To add a field, add its row:
//! its doc comment is the description.

use std::marker::PhantomData;

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, integer, missing, wrong_type};
use super::unsupported;

/// A struct that [`request_fields`] made of a table.
pub(crate) trait Table: Sized {
    /// Takes the fields of the table. Other fields are left.
    ///
    /// # Errors
    /// 400 if a field has the wrong type or is out of range, or if a required one is missing.
    fn take(fields: &mut Fields) -> Result<Self, ApiError>;

    /// The rows, for the OpenAPI document.
    fn rows() -> Vec<FieldRow>;

    /// JSON schema of the object.
    fn schema() -> Value {
        object_schema(Self::rows())
    }
}

/// A field as the OpenAPI document describes it.
#[derive(Debug)]
pub(crate) struct FieldRow {
    pub(crate) name: &'static str,
    /// JSON schema with default and description.
    pub(crate) schema: Value,
    pub(crate) required: bool,
}

/// JSON schema of an object with these fields.
pub(crate) fn object_schema(rows: Vec<FieldRow>) -> Value {
    let required: Vec<&str> = rows.iter().filter(|row| row.required).map(|row| row.name).collect();
    let properties: Map<String, Value> =
        rows.into_iter().map(|row| (row.name.to_owned(), row.schema)).collect();
    let mut schema = json!({ "type": "object", "properties": properties });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

/// Makes a struct, its reader and the rows of its document from a table.
///
/// A row is `name: Type = constructor;`. `name as "json": …` gives a JSON name that is no Rust name. Rows after
/// `checked` are checked and dropped: the struct has no member for them. Members after `plus` are no fields of
/// the request; the reader gives them their default.
macro_rules! request_fields {
    (
        $(#[$table_doc:meta])*
        $table:ident {
            $( $(#[doc = $about:literal])+ $name:ident $(as $json:literal)?: $kind:ty = $row:expr; )*
        }
        $( checked {
            $( $(#[doc = $dropped_about:literal])+
                $dropped:ident $(as $dropped_json:literal)?: $dropped_kind:ty = $dropped_row:expr; )*
        } )?
        $( plus { $( $(#[$more_doc:meta])* $more:ident: $more_type:ty, )* } )?
    ) => {
        $(#[$table_doc])*
        #[derive(Debug, Default)]
        pub(crate) struct $table {
            $( $(#[doc = $about])+ pub(crate) $name: Option<<$kind as $crate::server::field_table::Kind>::Value>, )*
            $( $( $(#[$more_doc])* pub(crate) $more: $more_type, )* )?
        }

        impl $crate::server::field_table::Table for $table {
            fn take(
                fields: &mut $crate::server::fields::Fields,
            ) -> Result<Self, $crate::server::error::ApiError> {
                $( $(
                    let field: $crate::server::field_table::Field<$dropped_kind> = $dropped_row;
                    field.take(request_fields!(@json $dropped $($dropped_json)?), fields)?;
                )* )?
                Ok(Self {
                    $( $name: {
                        let field: $crate::server::field_table::Field<$kind> = $row;
                        field.take(request_fields!(@json $name $($json)?), fields)?
                    }, )*
                    $( $( $more: Default::default(), )* )?
                })
            }

            fn rows() -> Vec<$crate::server::field_table::FieldRow> {
                vec![$( {
                    let field: $crate::server::field_table::Field<$kind> = $row;
                    field.row(request_fields!(@json $name $($json)?), concat!($($about),+))
                }, )*
                $( $( {
                    let field: $crate::server::field_table::Field<$dropped_kind> = $dropped_row;
                    field.row(request_fields!(@json $dropped $($dropped_json)?), concat!($($dropped_about),+))
                }, )* )?]
            }
        }
    };
    (@json $name:ident) => { stringify!($name) };
    (@json $name:ident $json:literal) => { $json };
}
pub(crate) use request_fields;

/// The type and range of a field.
pub(crate) trait Kind {
    /// The Rust type of a value in range.
    type Value;

    /// The values that are accepted, for the error of a required field that is missing.
    fn expected(&self) -> String;

    /// Reads a value that is not null. Paths of unknown fields within it are added to `ignored`.
    ///
    /// # Errors
    /// 400 if the value has the wrong type or is out of range.
    fn read(&self, path: &str, value: Value, ignored: &mut Vec<String>) -> Result<Self::Value, ApiError>;

    /// JSON schema of the values that are accepted.
    fn schema(&self) -> Value;
}

/// A row of a table, without the name.
#[derive(Debug)]
pub(crate) struct Field<K> {
    kind: K,
    /// The default as JSON; empty if there is no fixed one.
    default: &'static str,
    required: bool,
    has_effect: bool,
}

impl<K: Kind> Field<K> {
    const fn new(kind: K) -> Self {
        Self { kind, default: "", required: false, has_effect: true }
    }

    /// Sets the default, as JSON. The reader does not fill it in.
    pub(crate) fn default(self, json: &'static str) -> Self {
        Self { default: json, ..self }
    }

    /// Makes the field required.
    pub(crate) fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// Says that the field changes nothing.
    pub(crate) fn without_effect(self) -> Self {
        Self { has_effect: false, ..self }
    }

    /// Takes the field; `None` if it is absent or null.
    pub(crate) fn take(&self, name: &'static str, fields: &mut Fields) -> Result<Option<K::Value>, ApiError> {
        let path = fields.path_of(name);
        match fields.value(name) {
            None if self.required => Err(missing(&path, &self.kind.expected())),
            None => Ok(None),
            Some(value) => self.kind.read(&path, value, fields.ignored()).map(Some),
        }
    }

    /// The row of the document.
    pub(crate) fn row(&self, name: &'static str, about: &str) -> FieldRow {
        let mut schema = self.kind.schema();
        if !self.required {
            schema = or_null(schema);
        }
        if !self.default.is_empty() {
            schema["default"] = serde_json::from_str(self.default).expect("a default is JSON");
        }
        if !self.has_effect {
            schema["x-octant-without-effect"] = json!(true);
        }
        schema["description"] = json!(about.trim());
        FieldRow { name, schema, required: self.required }
    }
}

/// The schema, or null, which counts as absent.
fn or_null(mut schema: Value) -> Value {
    match schema.get("type") {
        Some(Value::String(kind)) if schema.get("enum").is_none() => {
            schema["type"] = json!([kind, "null"]);
            schema
        }
        _ => match schema.get_mut("anyOf").and_then(Value::as_array_mut) {
            Some(kinds) => {
                kinds.push(json!({ "type": "null" }));
                schema
            }
            None => json!({ "anyOf": [schema, { "type": "null" }] }),
        },
    }
}

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
    /// What the items are, in the plural.
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
