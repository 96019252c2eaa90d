//! Documents of any shape as a tree of values with places, and a way to read them field by field that says what is wrong where.
//!
//! For documents of others (Kubernetes), of which a file may hold many kinds: what is not asked for can be refused, noted or passed over.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Location, Spanned};

use super::at;
use crate::diagnostic::{Diagnostic, Diagnostics, Place, Severity, Source, suggest};

/// A value with its place.
pub(crate) type Item = Spanned<Value>;

/// What YAML (and with it JSON) can say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    /// Neither an integer nor exact.
    Float(f64),
    Text(String),
    List(Vec<Item>),
    /// In the order in which it is written.
    Mapping(Vec<(Spanned<String>, Item)>),
}

impl Value {
    const fn what(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a truth value",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Mapping(_) => "a mapping",
        }
    }

    /// A value that stands in no file, and has no place.
    pub(crate) fn of_json(json: serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Bool(value),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(integer) => Self::Integer(integer),
                None => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Self::Text(text),
            serde_json::Value::Array(items) => {
                Self::List(items.into_iter().map(|item| nowhere(Self::of_json(item))).collect())
            }
            serde_json::Value::Object(entries) => {
                let entry = |(key, value)| (nowhere(key), nowhere(Self::of_json(value)));
                Self::Mapping(entries.into_iter().map(entry).collect())
            }
        }
    }

    /// The same without places.
    pub(crate) fn json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Integer(number) => (*number).into(),
            Self::Float(number) => (*number).into(),
            Self::Text(text) => text.as_str().into(),
            Self::List(items) => items.iter().map(|item| item.value.json()).collect(),
            Self::Mapping(entries) => {
                entries.iter().map(|(key, item)| (key.value.clone(), item.value.json())).collect()
            }
        }
    }
}

/// A value without a place.
pub(crate) const fn nowhere<T>(value: T) -> Spanned<T> {
    Spanned { value, referenced: Location::UNKNOWN, defined: Location::UNKNOWN }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Anything;
        impl<'de> Visitor<'de> for Anything {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_none<E: de::Error>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Integer(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
                #[expect(clippy::cast_precision_loss, reason = "no field that is read has such numbers")]
                Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Integer))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Float(value))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Value::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Value::Mapping(entries))
            }
        }
        deserializer.deserialize_any(Anything)
    }
}

/// All documents of a file.
pub(crate) fn documents(source: &Arc<Source>) -> Result<Vec<Item>, Diagnostic> {
    let text = source.inner();
    super::read(text).map_err(|error| super::refuse(source, text, &error, None))
}

/// A value of a file.
#[derive(Clone, Copy)]
pub(crate) struct Node<'a> {
    pub(crate) source: &'a Arc<Source>,
    pub(crate) item: &'a Item,
}

impl<'a> Node<'a> {
    pub(crate) const fn new(source: &'a Arc<Source>, item: &'a Item) -> Self {
        Self { source, item }
    }

    pub(crate) const fn value(self) -> &'a Value {
        &self.item.value
    }

    /// Where it stands.
    pub(crate) fn place(self) -> Place {
        at(self.source, self.item)
    }

    /// An error here.
    pub(crate) fn error(self, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
        Diagnostic::error(&self.place(), message).help(help)
    }

    fn expected(self, what: &str, found: &mut Diagnostics) {
        let message = format!("{what} is expected here, not {}", self.value().what());
        found.push(self.error(message, format!("write {what}")));
    }

    /// Its fields.
    pub(crate) fn fields(self, found: &mut Diagnostics) -> Option<Fields<'a>> {
        match self.value() {
            Value::Mapping(entries) => Some(Fields { here: self, entries, known: Vec::new() }),
            _ => {
                self.expected("a mapping", found);
                None
            }
        }
    }

    /// Its items; none where it is something else.
    pub(crate) fn list(self, found: &mut Diagnostics) -> Vec<Self> {
        match self.value() {
            Value::List(items) => items.iter().map(|item| Self::new(self.source, item)).collect(),
            _ => {
                self.expected("a list", found);
                Vec::new()
            }
        }
    }

    pub(crate) fn text(self, found: &mut Diagnostics) -> Option<&'a str> {
        match self.value() {
            Value::Text(text) => Some(text),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                let message = format!("text is expected here, not {}", self.value().what());
                found.push(self.error(message, "put it in quotes, and it is text"));
                None
            }
            _ => {
                self.expected("text", found);
                None
            }
        }
    }

    pub(crate) fn integer(self, found: &mut Diagnostics) -> Option<i64> {
        match self.value() {
            Value::Integer(number) => Some(*number),
            _ => {
                self.expected("an integer", found);
                None
            }
        }
    }

    pub(crate) fn bool(self, found: &mut Diagnostics) -> Option<bool> {
        match self.value() {
            Value::Bool(value) => Some(*value),
            _ => {
                self.expected("`true` or `false`", found);
                None
            }
        }
    }

    /// A mapping of texts to texts, as labels are.
    pub(crate) fn texts(self, found: &mut Diagnostics) -> BTreeMap<String, String> {
        let Some(fields) = self.fields(found) else { return BTreeMap::new() };
        let entries = fields.entries.iter();
        entries
            .filter_map(|(key, item)| Some((key.value.clone(), Self::new(self.source, item).text(found)?.to_owned())))
            .collect()
    }
}

/// A mapping that is read field by field.
pub(crate) struct Fields<'a> {
    here: Node<'a>,
    entries: &'a [(Spanned<String>, Item)],
    /// What was asked for.
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The mapping as a whole.
    pub(crate) const fn here(&self) -> Node<'a> {
        self.here
    }

    /// All of them, whatever they are called.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a Spanned<String>, Node<'a>)> + use<'a> {
        let source = self.here.source;
        self.entries.iter().map(move |(key, item)| (key, Node::new(source, item)))
    }

    /// A field; one that is null is left out.
    pub(crate) fn get(&mut self, name: &'static str) -> Option<Node<'a>> {
        self.known.push(name);
        let (_, item) = self.entries.iter().find(|(key, _)| key.value == name)?;
        (item.value != Value::Null).then(|| Node::new(self.here.source, item))
    }

    /// A field that must be there.
    pub(crate) fn required(&mut self, name: &'static str, found: &mut Diagnostics) -> Option<Node<'a>> {
        let field = self.get(name);
        if field.is_none() {
            found.push(self.here.error(format!("`{name}` is missing"), format!("add `{name}:`")));
        }
        field
    }

    /// Fields that may stand there and say nothing here.
    pub(crate) fn ignore(&mut self, names: &[&'static str]) {
        self.known.extend(names);
    }

    /// Whether everything that stands there is called so.
    pub(crate) fn are_among(&self, names: &[&str]) -> bool {
        self.entries.iter().all(|(key, _)| names.contains(&key.value.as_str()))
    }

    /// What stands there and was not asked for.
    pub(crate) fn rest(&self) -> impl Iterator<Item = Diagnostic> {
        let unknown = self.entries.iter().filter(|(key, _)| !self.known.contains(&key.value.as_str()));
        unknown.map(|(key, _)| {
            let error = Diagnostic::error(&at(self.here.source, key), format!("unknown field `{}`", key.value));
            error.help(suggest(&key.value, self.known.iter().copied()))
        })
    }

    /// What stands beside `spec` and was not asked for, and whether it belongs into `spec`.
    fn beside<'b>(&'b self, of_spec: &'b [&str]) -> impl Iterator<Item = (bool, Diagnostic)> + use<'a, 'b> {
        let unknown = self.entries.iter().filter(|(key, _)| !self.known.contains(&key.value.as_str()));
        unknown.zip(self.rest()).map(move |((key, _), error)| match of_spec.contains(&key.value.as_str()) {
            true => (true, error.help(format!("move `{}` into `spec`, to the right", key.value))),
            false => (false, error),
        })
    }

    /// Notes what was not asked for, and refuses what stands beside `spec` and belongs into it.
    pub(crate) fn note_rest(&self, of_spec: &[&str], found: &mut Diagnostics) {
        found.0.extend(self.beside(of_spec).map(|(moved, error)| match moved {
            true => error,
            false => Diagnostic { severity: Severity::Warning, ..error },
        }));
    }

    /// Refuses what was not asked for beside `spec`, wherever it belongs.
    pub(crate) fn refuse_beside(&self, of_spec: &[&str], found: &mut Diagnostics) {
        found.0.extend(self.beside(of_spec).map(|(_, error)| error));
    }

    /// Refuses what was not asked for.
    pub(crate) fn refuse_rest(&self, found: &mut Diagnostics) {
        found.0.extend(self.rest());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::source;

    #[test]
    fn values_know_where_they_stand() {
        let source =
            source("a.yaml", "kind: A\nspec:\n  port: 80\n  name: \"80\"\n  on: true\n---\n{\"list\": [1, null, x]}\n");
        let documents = documents(&source).unwrap();
        assert_eq!(documents.len(), 2);
        let mut found = Diagnostics::default();
        let mut fields = Node::new(&source, &documents[0]).fields(&mut found).unwrap();
        assert_eq!(fields.get("kind").unwrap().text(&mut found), Some("A"));
        let mut spec = fields.get("spec").unwrap().fields(&mut found).unwrap();
        let port = spec.get("port").unwrap();
        assert_eq!((port.integer(&mut found), port.place().line, port.place().column), (Some(80), 3, 9));
        assert_eq!(spec.get("name").unwrap().text(&mut found), Some("80"));
        assert_eq!(spec.get("on").unwrap().bool(&mut found), Some(true));
        assert_eq!((spec.rest().count(), fields.rest().count()), (0, 0));
        let mut second = Node::new(&source, &documents[1]).fields(&mut found).unwrap();
        let list = second.get("list").unwrap().list(&mut found);
        assert_eq!(
            list.iter().map(|node| node.value().clone()).collect::<Vec<_>>()[..2],
            [Value::Integer(1), Value::Null]
        );
        assert!(found.0.is_empty(), "{found}");
        assert!(list[2].integer(&mut found).is_none());
        assert_eq!(found.to_string(), "a.yaml:7:20: an integer is expected here, not text\n  help: write an integer");
    }

    #[test]
    fn what_was_not_asked_for_is_named_with_what_is_near() {
        let source = source("a.yaml", "spec: 1\nspce: 2\n");
        let documents = documents(&source).unwrap();
        let mut found = Diagnostics::default();
        let mut fields = Node::new(&source, &documents[0]).fields(&mut found).unwrap();
        fields.get("spec");
        fields.refuse_rest(&mut found);
        assert_eq!(found.to_string(), "a.yaml:2:1: unknown field `spce`\n  help: did you mean `spec`?");
    }
}
