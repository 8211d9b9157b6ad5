//! The table of request fields. A row has a field's JSON name, its type with its range, its default and a
//! description.
//!
//! The macro [`request_fields`] makes two things of the rows of a table: the struct that a request is read
//! into, and the JSON schema in the OpenAPI document. A field without a row cannot be read, and the document
//! cannot have another range than the reader.
//!
//! A table of its own describes each object: the body, or an object within it. To add a field, add its row:
//! its doc comment is the description.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, missing};

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
/// A row is `name: Type = constructor;`. `name as "json": …` gives a JSON name that is no Rust name. Rows
/// after `checked` are checked and dropped: the struct has no member for them. Members after `plus` are no
/// fields of the request; the reader gives them their default.
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
            $(
                $(#[doc = $about])+
                pub(crate) $name: Option<<$kind as $crate::server::field_table::Kind>::Value>,
            )*
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
                    let about = concat!($($dropped_about),+);
                    field.row(request_fields!(@json $dropped $($dropped_json)?), about)
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
    /// A field that is not required, has an effect and no fixed default.
    pub(crate) const fn new(kind: K) -> Self {
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
