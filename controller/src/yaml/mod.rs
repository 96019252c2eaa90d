//! YAML with places: every value that can be wrong knows where it stands.

pub(crate) mod path;
pub(crate) mod tree;
pub(crate) mod write;

use std::{fmt, marker::PhantomData, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Error, Location, Spanned, budget::BudgetBreach};

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

/// Names of what every document begins with.
const HEADER: [&str; 2] = [API_VERSION_FIELD, "kind"];
const API_VERSION_FIELD: &str = "apiVersion";

const ONE_OR_MANY: &str = "a text or a list of texts";

/// One text, or a list of texts.
#[derive(Debug)]
pub(crate) struct OneOrMany(pub(crate) Vec<Spanned<String>>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        enum Either {
            One(String),
            Many(Vec<Spanned<String>>),
        }
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Either;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(ONE_OR_MANY)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Either, E> {
                Ok(Either::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Either, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element()? {
                    texts.push(text);
                }
                Ok(Either::Many(texts))
            }
        }
        impl<'de> Deserialize<'de> for Either {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Texts)
            }
        }
        let Spanned { value, referenced, defined } = Spanned::<Either>::deserialize(deserializer)?;
        Ok(Self(match value {
            Either::One(value) => vec![Spanned { value, referenced, defined }],
            Either::Many(texts) => texts,
        }))
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

/// A kind of document.
pub(crate) struct Kind {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its fields besides those of every document, where a file may hold several kinds; else empty.
    pub(crate) fields: &'static [&'static str],
}

/// Reads all documents of a file, at least one. Each must be of the given kind; `refusal` knows what to say of others.
pub(crate) fn documents<'de, T: Deserialize<'de>>(
    source: &'de Arc<Source>,
    kind: &'static str,
    refusal: Refusal,
) -> Result<Vec<Spanned<T>>, Diagnostic> {
    documents_of(source, &[Kind { name: kind, fields: &[] }], refusal)
}

/// The same where each document is of one of several kinds, whose fields `T` has all.
pub(crate) fn documents_of<'de, T: Deserialize<'de>>(
    source: &'de Arc<Source>,
    kinds: &[Kind],
    refusal: Refusal,
) -> Result<Vec<Spanned<T>>, Diagnostic> {
    let text = source.inner();
    let headers: Vec<Spanned<Header>> = read(text).map_err(|error| refuse(source, text, &error, None))?;
    let known = || kinds.iter().map(|kind| format!("`kind: {}`", kind.name)).collect::<Vec<_>>().join(" or ");
    if headers.is_empty() {
        // Also what a reader sees of a file that somebody is about to write: it must not open what the text to come isolates.
        return Err(Diagnostic::error(&Place::start(source), "the file has no document")
            .help(format!("begin with `apiVersion: {API_VERSION}` and {}, or remove the file", known())));
    }
    for header in &headers {
        let here = at(source, header);
        match &header.value.kind {
            None => {
                return Err(Diagnostic::error(&here, "the document has no `kind`").help(format!("write {}", known())));
            }
            Some(found) if kinds.iter().all(|kind| kind.name != found.value) => {
                let place = at(source, found);
                let error = Diagnostic::error(&place, format!("kind `{}` cannot be read here", found.value));
                return Err(match refusal(&found.value) {
                    Some(why) => error.help(why),
                    None => error.help(format!("write {}", known())),
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
    read(text).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let header = headers.iter().rev().find(|header| header.referenced.line() <= line);
        let kind = header.and_then(|header| header.value.kind.as_ref());
        refuse(source, text, &error, kinds.iter().find(|known| kind.is_some_and(|kind| kind.value == known.name)))
    })
}

/// Whose documents a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Our policies.
    Policies,
    /// Our workloads file.
    Workloads,
    /// Kubernetes objects.
    Manifests,
    /// A list or a text: somebody's data, no document of anybody's.
    Data,
}

/// Whose documents a file holds.
pub(crate) fn family(source: &Arc<Source>) -> Result<Family, Diagnostic> {
    Ok(family_of(&tree::documents(source)?))
}

/// Whose documents these are, by the first one.
pub(crate) fn family_of(documents: &[tree::Item]) -> Family {
    let mut headers = documents.iter().filter_map(|document| match &document.value {
        tree::Value::Mapping(entries) => Some(entries),
        _ => None,
    });
    let Some(header) = headers.next() else { return Family::Data };
    let text = |field: &str| match header.iter().find(|(key, _)| key.value == field).map(|(_, item)| &item.value) {
        Some(tree::Value::Text(text)) => text.as_str(),
        _ => "",
    };
    let group = text(API_VERSION_FIELD).split('/').next().unwrap_or_default();
    // Kinds of ours are known as such without a version, so that it is that which is missing.
    let named = group.is_empty() && ["Intent", "Guard", "Workloads"].contains(&text("kind"));
    let ours = named || API_VERSION.split('/').next() == Some(group);
    match (ours, text("kind")) {
        (true, "Workloads") => Family::Workloads,
        (true, _) => Family::Policies,
        (false, _) => Family::Manifests,
    }
}

/// Values of a text: as many as one of its length can have without aliases, and room for some of these.
const NODES_PER_BYTE: usize = 1;
const NODES: usize = 250_000;

/// Reads all documents of a text as they are, whatever they are.
pub(crate) fn read<'de, T: Deserialize<'de>>(text: &'de str) -> Result<Vec<T>, Error> {
    let nodes = NODES + NODES_PER_BYTE * text.len();
    // The defaults bound depth, aliases and size, and refuse a key that is written twice.
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! { max_nodes: nodes, max_events: 4 * nodes, max_documents: nodes },
    };
    serde_saphyr::from_multiple_with_options(text, options)
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

fn refuse(source: &Arc<Source>, text: &str, error: &Error, kind: Option<&Kind>) -> Diagnostic {
    let here = error.location().map_or_else(|| Place::start(source), |location| place(source, text, location));
    let mut cause = error.without_snippet();
    // What is wrong by an alias is what is wrong behind it.
    while let Error::AliasError { error, .. } = cause {
        cause = error;
    }
    match cause {
        Error::Budget { breach, .. } => {
            let message = match breach {
                BudgetBreach::Depth { depth } => format!("values are nested {depth} deep, which is too much"),
                _ => "the text says more than one of its length can, by its aliases".to_owned(),
            };
            Diagnostic::error(&here, message).help("write it without aliases or nesting, or split it")
        }
        Error::SerdeUnknownField { field, expected, .. } => {
            let fields = kind.map(|kind| kind.fields).filter(|fields| !fields.is_empty());
            let own = |name: &&str| {
                // A document's own fields, and not those of something inside it.
                let document = expected.contains(&API_VERSION_FIELD);
                fields.is_none_or(|fields| !document || fields.contains(name) || HEADER.contains(name))
            };
            let expected: Vec<_> = expected.iter().copied().filter(own).collect();
            Diagnostic::error(&here, format!("unknown field `{field}`")).help(suggest(field, expected))
        }
        Error::SerdeMissingField { field, .. } => {
            Diagnostic::error(&here, format!("`{field}` is missing")).help(format!("add `{field}:`"))
        }
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().map_or_else(String::new, |key| format!(" `{key}`"));
            Diagnostic::error(&here, format!("the key{key} is written twice in one mapping"))
                .help("keep one of the two")
        }
        Error::SerdeInvalidType { expected, .. } if expected == ONE_OR_MANY => {
            Diagnostic::error(&here, format!("{ONE_OR_MANY} is expected here"))
                .help("write `node:22`, without a space after the colon, or `[world, node:22]`")
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
