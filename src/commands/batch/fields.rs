//! The fields of a JSON object, of which some are replaced and all others keep their text.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// The fields of an object, in order, with the text of their values.
pub(super) struct RawFields(Vec<(String, Box<RawValue>)>);

impl RawFields {
    /// The text of a field's value; `None` if there is none or it is null.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.get());
        value.filter(|value| *value != "null")
    }

    /// Sets a field, in its place if it exists.
    pub(super) fn set(&mut self, name: &str, value: &impl Serialize) -> serde_json::Result<()> {
        let value = serde_json::value::to_raw_value(value)?;
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
        Ok(())
    }

    /// Replaces the value at a path of names, if it exists.
    pub(super) fn replace(&mut self, path: &[&str], value: &impl Serialize) -> serde_json::Result<()> {
        let Some((first, rest)) = path.split_first() else { return Ok(()) };
        let Some(old) = self.get(first) else { return Ok(()) };
        if rest.is_empty() {
            return self.set(first, value);
        }
        let Ok(mut inner) = serde_json::from_str::<Self>(old) else { return Ok(()) };
        inner.replace(rest, value)?;
        self.set(first, &inner)
    }
}

impl Serialize for RawFields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl<'de> Deserialize<'de> for RawFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = RawFields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawFields, A::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
                }
                Ok(RawFields(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}
