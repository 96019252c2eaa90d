//! What a runtime hands to the plugin in its environment.

use std::{collections::BTreeMap, path::PathBuf};

use super::{Code, Error, config::name};

/// Verbs of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// An interface was made.
    Add,
    /// It goes.
    Del,
    /// Is all as it should be?
    Check,
    /// What the runtime does not know shall go.
    Gc,
    /// Can ADD be served?
    Status,
    /// Which versions are spoken?
    Version,
}

impl Verb {
    /// All of them, by what the specification calls them.
    pub const ALL: [(&'static str, Self); 6] = [
        ("ADD", Self::Add),
        ("DEL", Self::Del),
        ("CHECK", Self::Check),
        ("GC", Self::Gc),
        ("STATUS", Self::Status),
        ("VERSION", Self::Version),
    ];
}

/// The attachment that a call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The container, as the runtime calls it.
    pub container: String,
    /// Name of the interface in it.
    pub ifname: String,
    /// Its network namespace; `None` in a DEL of one that is gone.
    pub netns: Option<PathBuf>,
    /// Namespace of the workload, where the runtime names one.
    pub namespace: Option<String>,
    /// Name of the workload, where the runtime names one.
    pub name: Option<String>,
    /// Unique id of the pod, where there is one.
    pub uid: Option<String>,
}

/// Which verb the environment asks for.
///
/// # Errors
/// None, or one that is not known.
pub fn verb(variable: impl Fn(&str) -> Option<String>) -> Result<Verb, Error> {
    let written = variable("CNI_COMMAND");
    let known = written.as_deref().and_then(|written| Verb::ALL.into_iter().find(|(name, _)| *name == written));
    known.map(|(_, verb)| verb).ok_or_else(|| {
        let names = Verb::ALL.map(|(name, _)| name).join(", ");
        bad(
            format!(
                "CNI_COMMAND is {}",
                written.map_or_else(|| "not set".to_owned(), |written| format!("`{written}`"))
            ),
            &format!("this is a CNI plugin: a container runtime calls it, with one of {names}"),
        )
    })
}

fn bad(message: String, details: &str) -> Error {
    Error::new(Code::Environment, message, details)
}

impl Subject {
    /// Reads what ADD, DEL and CHECK are about.
    ///
    /// # Errors
    /// Something is missing, or could be no name.
    pub fn read(verb: Verb, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let required = |key: &str| {
            variable(key)
                .filter(|value| !value.is_empty())
                .ok_or_else(|| bad(format!("{key} is not set"), "a container runtime sets it"))
        };
        let container = required("CNI_CONTAINERID")?;
        if !name(&container) {
            let details = "letters, digits, `-`, `_` and `.`, a letter or digit first";
            return Err(bad(format!("CNI_CONTAINERID `{}` cannot be that of a container", short(&container)), details));
        }
        let ifname = required("CNI_IFNAME")?;
        let plain = |c: char| !c.is_whitespace() && !c.is_control() && !"/:".contains(c);
        if ifname.len() > 15 || ifname == "." || ifname == ".." || !ifname.chars().all(plain) {
            let details = "at most 15 characters, without `/`, `:` and blanks";
            return Err(bad(format!("CNI_IFNAME `{}` cannot be that of a link", short(&ifname)), details));
        }
        let netns = variable("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from);
        if verb != Verb::Del && !netns.as_ref().is_some_and(|path| path.is_absolute()) {
            return Err(bad("CNI_NETNS is no absolute path".to_owned(), "it is the path of a network namespace"));
        }
        let written = variable("CNI_ARGS").unwrap_or_default();
        let arguments = arguments(&written)?;
        let of = |key: &str| match arguments.get(key) {
            Some(value) if !name(value) => {
                Err(bad(format!("{key} `{}` cannot be a name", short(value)), "letters, digits, `-`, `_` and `.`"))
            }
            value => Ok(value.cloned()),
        };
        Ok(Self {
            container,
            ifname,
            netns,
            namespace: of("K8S_POD_NAMESPACE")?,
            name: of("K8S_POD_NAME")?,
            uid: of("K8S_POD_UID")?,
        })
    }
}

/// `KEY=VALUE;KEY=VALUE`.
fn arguments(text: &str) -> Result<BTreeMap<&str, String>, Error> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                bad(format!("CNI_ARGS has `{}`, which is no pair", short(pair)), "it is `KEY=VALUE;KEY=VALUE`")
            })?;
            Ok((key, value.to_owned()))
        })
        .filter(|pair| !matches!(pair, Ok((_, value)) if value.is_empty()))
        .collect()
}

/// What somebody wrote, for a message.
fn short(text: &str) -> String {
    let mut short: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if short.len() < text.len() && text.chars().nth(64).is_some() {
        short.push_str("..");
    }
    short
}
