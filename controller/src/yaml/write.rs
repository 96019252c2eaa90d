//! Writes a document together with what [`super::tree::documents`] would read from it, places and all, so that nobody needs to read it.
//!
//! A cluster tells policies as JSON. They are kept as YAML, as people write them, and their rules are known by the lines where they stand there. To parse what
//! had just been written took as long as to compile it. What is written is what the library writes, letter by letter: revisions are compared by their texts.

use serde::{
    Deserialize as _, Deserializer,
    de::{
        IntoDeserializer, Visitor,
        value::{Error, MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::Value as Json;
use serde_saphyr::{Location, Spanned};

use super::tree::{Item, Value};

/// Longer texts are folded, and a parser does not look for the end of a much longer key.
const LONGEST: usize = 80;
/// A parser goes deeper, but no policy does.
const DEEPEST: usize = 32;
/// What is in a mapping or in a list of lists stands so many columns further to the right.
const STEP: usize = 2;
/// Before each item of a list, and as wide as a step.
const DASH: &str = "- ";
/// Texts that are something else without quotes, to some reader at least.
const WORDS: [&str; 11] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"];

/// The text of a mapping, and the mapping as its only document. `None` where it has what policies have not, or hardly ever: texts other than names, labels,
/// ports and prefixes, other numbers than integers, and many levels.
pub(crate) fn write(document: &Json) -> Option<(String, Item)> {
    let mut writer = Writer { text: String::new(), line: 1, start: 0, depth: 0 };
    let item = writer.value(document, 0)?;
    writer.text.push('\n');
    Some((writer.text, item))
}

struct Writer {
    text: String,
    /// The last line, from 1.
    line: u32,
    /// Where it starts, in bytes.
    start: usize,
    /// In how many values the one stands that is written.
    depth: usize,
}

impl Writer {
    /// Writes a value on the last line. What of it stands on lines of its own is indented.
    fn value(&mut self, value: &Json, indent: usize) -> Option<Item> {
        let here = self.here();
        match value {
            Json::Array(items) if !items.is_empty() => return self.list(items, indent).map(|list| here.spans(0, list)),
            Json::Object(entries) if !entries.is_empty() => {
                return self.mapping(entries, indent).map(|mapping| here.spans(0, mapping));
            }
            Json::Array(_) => {
                self.text.push_str("[]");
                return Some(here.spans(1, Value::List(Vec::new())));
            }
            Json::Object(_) => {
                self.text.push_str("{}");
                return Some(here.spans(1, Value::Mapping(Vec::new())));
            }
            Json::Null => self.text.push_str("null"),
            Json::Bool(value) => self.text.push_str(if *value { "true" } else { "false" }),
            Json::Number(number) => self.text.push_str(&number.as_i64()?.to_string()),
            Json::String(text) if is_plain(text) => self.text.push_str(text),
            Json::String(text) if is_quoted(text) => self.text.extend(["\"", text, "\""]),
            Json::String(_) => return None,
        }
        Some(here.spans(self.text.len() - here.offset, Value::of_json(value.clone())))
    }

    fn mapping(&mut self, entries: &serde_json::Map<String, Json>, indent: usize) -> Option<Value> {
        self.deeper()?;
        let mut mapping = Vec::with_capacity(entries.len());
        for (number, (name, value)) in entries.iter().enumerate() {
            if number > 0 {
                self.begin_line(indent);
            }
            if !is_plain(name) || name.contains(':') {
                return None;
            }
            let key = self.here().spans(name.len(), name.clone());
            self.text.extend([name, ":"]);
            let item = match value {
                Json::Array(items) if !items.is_empty() => {
                    self.begin_line(indent);
                    // A list that is no further to the right than its name begins behind its first dash.
                    let here = self.here().after(DASH);
                    here.spans(0, self.list(items, indent)?)
                }
                Json::Object(entries) if !entries.is_empty() => {
                    self.begin_line(indent + STEP);
                    self.value(value, indent + STEP)?
                }
                _ => {
                    self.text.push(' ');
                    self.value(value, indent)?
                }
            };
            mapping.push((key, item));
        }
        self.depth -= 1;
        Some(Value::Mapping(mapping))
    }

    fn list(&mut self, items: &[Json], indent: usize) -> Option<Value> {
        self.deeper()?;
        let mut list = Vec::with_capacity(items.len());
        for (number, item) in items.iter().enumerate() {
            if number > 0 {
                self.begin_line(indent);
            }
            self.text.push_str(DASH);
            list.push(self.value(item, indent + STEP)?);
        }
        self.depth -= 1;
        Some(Value::List(list))
    }

    fn deeper(&mut self) -> Option<()> {
        self.depth += 1;
        (self.depth <= DEEPEST).then_some(())
    }

    fn begin_line(&mut self, indent: usize) {
        self.text.push('\n');
        self.line += 1;
        self.start = self.text.len();
        self.text.extend(std::iter::repeat_n(' ', indent));
    }

    const fn here(&self) -> Here {
        Here { line: self.line, column: self.text.len() - self.start + 1, offset: self.text.len() }
    }
}

/// Whether a text stands without quotes. A name that has a colon does not.
fn is_plain(text: &str) -> bool {
    let is_usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-' | ':');
    // What begins with a digit may be a number or a date, but a prefix is neither.
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic())
        || text.starts_with(|c: char| c.is_ascii_digit()) && text.contains('/');
    begins
        && text.len() <= LONGEST
        && !text.ends_with(':')
        && text.chars().all(is_usual)
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// Whether a text stands in quotes, as labels do that could be something else.
fn is_quoted(text: &str) -> bool {
    WORDS.contains(&text) || text.len() <= LONGEST && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Where something begins. Characters are bytes, since no others are written.
#[derive(Clone, Copy)]
struct Here {
    line: u32,
    /// From 1.
    column: usize,
    offset: usize,
}

impl Here {
    const fn after(self, text: &str) -> Self {
        Self { column: self.column + text.len(), offset: self.offset + text.len(), ..self }
    }

    /// A value that begins here and has so many bytes.
    fn spans<T>(self, len: usize, value: T) -> Spanned<T> {
        // The text of an object is much shorter.
        let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let (offset, len) = (narrow(self.offset), narrow(len));
        let part = Part::Place { line: self.line, column: narrow(self.column), offset, len };
        let place = Location::deserialize(part).unwrap_or(Location::UNKNOWN);
        Spanned { value, referenced: place, defined: place }
    }
}

/// Parts of a [`Location`], which is made by reading one: its parser alone can make it otherwise.
#[derive(Clone, Copy)]
enum Part {
    Place {
        line: u32,
        column: u32,
        offset: u32,
        len: u32,
    },
    Span {
        offset: u32,
        len: u32,
    },
    /// Offset and length in bytes.
    Bytes(u32, u32),
    Number(u32),
}

impl<'de> Deserializer<'de> for Part {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Place { line, column, offset, len } => {
                let span = Self::Span { offset, len };
                let parts = [("line", Self::Number(line)), ("column", Self::Number(column)), ("span", span)];
                visitor.visit_map(MapDeserializer::new(parts.into_iter()))
            }
            Self::Span { offset, len } => {
                let bytes = Self::Bytes(offset, len);
                let parts = [("offset", Self::Number(offset)), ("len", Self::Number(len)), ("byte_info", bytes)];
                visitor.visit_map(MapDeserializer::new(parts.into_iter()))
            }
            Self::Bytes(offset, len) => visitor.visit_seq(SeqDeserializer::new([offset, len].into_iter())),
            Self::Number(number) => visitor.visit_u32(number),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple tuple_struct map
        struct enum identifier ignored_any
    }
}

impl IntoDeserializer<'_> for Part {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::{
        collection::{btree_map, vec},
        prelude::*,
        sample::select,
    };
    use serde_json::json;

    use super::*;
    use crate::{diagnostic::source, yaml::tree};

    /// It is what the library writes, and what is read of it is what it came with.
    fn agrees(document: &Json) -> Option<String> {
        let (text, item) = write(document)?;
        assert_eq!(text, serde_saphyr::to_string(document).unwrap());
        let read = tree::documents(&source("a", text.as_str())).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(read, [item], "{text}");
        assert_eq!(read[0].value.json(), *document, "{text}");
        Some(text)
    }

    #[test]
    fn policies_are_written() {
        let document = json!({
            "kind": "NetworkPolicy",
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": {
                "podSelector": { "matchLabels": { "app.kubernetes.io/name": "web", "tier": "2", "public": "yes", "of": "" } },
                "policyTypes": [],
                "ingress": [
                    {
                        "from": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "fd00::/8", "2001:db8::/32"] } }],
                        "ports": [{ "port": 80, "protocol": "TCP" }, { "port": "http" }],
                    },
                    {},
                ],
                "odd": [["No-1", true], null, [[-1]], [{ "calls": ["db:8080"] }]],
            },
        });
        assert!(agrees(&document).is_some());
    }

    #[test]
    fn what_is_not_written_is_left_to_others() {
        let long = "k".repeat(LONGEST + 1);
        let deep = (0..DEEPEST).fold(json!({}), |inner, _| json!([inner]));
        assert!(write(&deep).is_some());
        let texts =
            ["two\nlines", "\t", "\u{e9}", "two words", "Yes", "1.10", "0x1f", "2027-01-31", "a:", "- a", "#", &long];
        for document in texts.into_iter().map(Json::from).chain([json!([deep]), json!(1.5), json!(u64::MAX)]) {
            assert!(write(&json!({ "a": document })).is_none(), "{document}");
        }
        for name in ["", "1", "true", "a:b", &long] {
            assert!(write(&json!({ name: 1 })).is_none(), "{name}");
        }
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            "[ -~]{0,12}",
            "[a-zA-Z][a-zA-Z0-9./_:-]{0,12}",
            "[0-9.eExob_/:-]{1,8}",
            select(WORDS.as_slice()).prop_map(str::to_owned),
            select(WORDS.as_slice()).prop_map(str::to_uppercase),
        ]
    }

    fn document(text: fn() -> BoxedStrategy<String>) -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            text().prop_map(Json::from),
        ];
        leaf.prop_recursive(5, 48, 4, move |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Json::from),
                btree_map(text(), inner, 0..4).prop_map(|fields| Json::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn what_is_written_is_what_is_read(document in document(|| text().boxed())) {
            // Nothing alone is no document.
            _ = agrees(&json!({ "all": document }));
        }

        #[test]
        fn labels_and_names_are_written(document in document(|| "[b-mo-x][a-z0-9./_-]{3,12}[0-9]".boxed())) {
            let text = agrees(&json!({ "all": document }));
            prop_assert!(text.is_some());
        }

        #[test]
        fn of_one_text_too(text in text()) {
            _ = agrees(&json!({ "all": [text], &text: text }));
        }
    }
}
