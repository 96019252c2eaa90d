//! YAML with places: every value that can be wrong knows where it stands.

use std::{fmt, marker::PhantomData, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_saphyr::{Error, Location, Spanned};

use crate::diagnostic::{Diagnostic, Place, Source, suggest};

/// The only version of what people write.
const API_VERSION: &str = "bulkhead/v1";

/// A mapping in the order in which it is written, its keys with their places.
#[derive(Debug)]
pub(crate) struct Entries<V>(pub(crate) Vec<(Spanned<String>, V)>);

impl<V> Default for Entries<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for InOrder<V> {
            type Value = Entries<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

/// What every document begins with.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Option<Spanned<String>>,
    kind: Option<Spanned<String>>,
}

/// A field of [`Header`] in a document whose header was checked. A type that refuses unknown fields needs it.
pub(crate) type Checked = IgnoredAny;

/// What a kind that is not read here gets told.
pub(crate) type Refusal = fn(&str) -> Option<&'static str>;

/// Reads all documents of a file, at least one. Each must be of the given kind; `refusal` knows what to say of others.
pub(crate) fn documents<'de, T: Deserialize<'de>>(
    source: &'de Arc<Source>,
    kind: &str,
    refusal: Refusal,
) -> Result<Vec<Spanned<T>>, Diagnostic> {
    let text = source.inner();
    let headers: Vec<Spanned<Header>> = read(source, text)?;
    if headers.is_empty() {
        // Also what a reader sees of a file that somebody is about to write: it must not open what the text to come isolates.
        return Err(Diagnostic::error(&Place::start(source), "the file has no document")
            .help(format!("begin with `apiVersion: {API_VERSION}` and `kind: {kind}`, or remove the file")));
    }
    for header in &headers {
        let here = at(source, header);
        match &header.value.kind {
            None => {
                return Err(
                    Diagnostic::error(&here, "the document has no `kind`").help(format!("write `kind: {kind}`"))
                );
            }
            Some(found) if found.value != kind => {
                let place = at(source, found);
                let error = Diagnostic::error(&place, format!("kind `{}` cannot be read here", found.value));
                return Err(match refusal(&found.value) {
                    Some(why) => error.help(why),
                    None => error.help(format!("write `kind: {kind}`")),
                });
            }
            Some(_) => {}
        }
        match &header.value.api_version {
            None => {
                return Err(Diagnostic::error(&here, "the document has no `apiVersion`")
                    .help(format!("write `apiVersion: {API_VERSION}`")));
            }
            Some(found) if found.value != API_VERSION => {
                let error = Diagnostic::error(&at(source, found), format!("apiVersion `{}` is not known", found.value));
                return Err(error.help(format!("write `apiVersion: {API_VERSION}`")));
            }
            Some(_) => {}
        }
    }
    read(source, text)
}

fn read<'de, T: Deserialize<'de>>(source: &Arc<Source>, text: &'de str) -> Result<Vec<T>, Diagnostic> {
    // The defaults bound depth, nodes, aliases and size, and refuse a key that is written twice.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| refuse(source, text, &error))
}

/// Place of a value; of an alias, where it is used.
pub(crate) fn at<T>(source: &Arc<Source>, value: &Spanned<T>) -> Place {
    place(source, source.inner(), value.referenced)
}

fn place(source: &Arc<Source>, text: &str, location: Location) -> Place {
    let span = location.span();
    // Without byte offsets (the parser's own errors) count characters.
    let bytes = |characters: u64| {
        let characters = usize::try_from(characters).unwrap_or(usize::MAX);
        text.char_indices().nth(characters).map_or(text.len(), |(offset, _)| offset)
    };
    let start =
        span.byte_offset().map_or_else(|| bytes(span.offset()), |offset| usize::try_from(offset).unwrap_or(usize::MAX));
    let len = span.byte_len().map_or_else(
        || bytes(span.offset() + span.len()).saturating_sub(start),
        |len| usize::try_from(len).unwrap_or(0),
    );
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Place::new(source, narrow(location.line()), narrow(location.column()), start, len)
}

fn refuse(source: &Arc<Source>, text: &str, error: &Error) -> Diagnostic {
    let here = error.location().map_or_else(|| Place::start(source), |location| place(source, text, location));
    match error.without_snippet() {
        Error::SerdeUnknownField { field, expected, .. } => {
            Diagnostic::error(&here, format!("unknown field `{field}`")).help(suggest(field, expected.iter().copied()))
        }
        Error::SerdeMissingField { field, .. } => {
            Diagnostic::error(&here, format!("`{field}` is missing")).help(format!("add `{field}:`"))
        }
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().map_or_else(String::new, |key| format!(" `{key}`"));
            Diagnostic::error(&here, format!("the key{key} is written twice in one mapping"))
                .help("keep one of the two")
        }
        Error::Unexpected { expected, .. } => {
            let (expected, help) = match *expected {
                "string scalar" => {
                    ("text", "for a peer and its port write `cart:8080`, without a space after the colon")
                }
                "mapping start" => ("a mapping", "write `name: value` lines, or `{ name: value }`"),
                "sequence start" => ("a list", "write `[one, two]`, or one `- item` a line"),
                other => (other, "compare with the examples in policy-examples/"),
            };
            Diagnostic::error(&here, format!("{expected} is expected here")).help(help)
        }
        other => {
            let message = other.to_string();
            let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
            Diagnostic::error(&here, message.to_owned())
                .help("correct the YAML; policy-examples/ shows how documents look")
        }
    }
}
