//! What an agent tells of itself: which Intents and Guards are in force on its node, in which edition. Small however many there are: sums of those that
//! are, and a list of those that are not. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::roster::Object;
use crate::{
    control::Standing,
    diagnostic::{Diagnostic, Diagnostics},
    yaml::path::path,
};

/// Objects are summed up in so many parts, by their unique ids: where two know of other objects, the parts without these are the same.
const PARTS: u8 = 64;
/// Objects that are listed, those with a reason first. The others are missing from the sums, and so are not taken for published.
const LISTED: usize = 16;
/// Characters of a reason.
const WORDS: usize = 500;

/// What one agent tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// By part, of all that are in force. Parts without one are left out.
    #[serde(default)]
    sums: BTreeMap<u8, String>,
    /// Those that are not.
    #[serde(default)]
    not: Vec<Not>,
    /// There are more of these.
    #[serde(default)]
    more: bool,
    /// Why what was compiled could not be published; empty when it could.
    #[serde(default)]
    pub(super) failed: String,
    /// The node drops nothing.
    #[serde(default)]
    pub(super) observe: bool,
}

/// One that is not in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Not {
    uid: String,
    generation: i64,
    /// Empty when it is only not there yet.
    why: String,
}

/// How an object stands on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stands {
    /// It is in force as it is.
    Published,
    /// It is not, and this is why.
    Refused(String),
    /// It is not in force yet.
    Waiting,
    /// The agent speaks of other objects: it is behind, or ahead.
    Unknown,
}

/// Objects by name.
pub(super) type Objects = BTreeMap<String, Arc<Object>>;

impl Report {
    /// Of objects that an agent was asked about.
    pub(super) fn new(objects: &Objects, standing: &Standing) -> Self {
        let differ = objects.iter().filter(|(name, _)| standing.differ.contains(*name));
        let mut not: Vec<_> = differ
            .map(|(name, object)| {
                let (uid, generation) = (object.uid.clone(), object.generation);
                Not { uid, generation, why: why(name, standing) }
            })
            .collect();
        let excluded = not.iter().map(|not| not.uid.clone()).collect();
        not.sort_by_key(|not| not.why.is_empty());
        let more = not.len() > LISTED;
        not.truncate(LISTED);
        Self {
            sums: sums(objects, &excluded),
            not,
            more,
            failed: cut(&standing.failed, WORDS),
            observe: standing.observe,
        }
    }

    /// How each object stands with whom told this, by unique id.
    pub(super) fn stand(&self, objects: &Objects) -> BTreeMap<String, Stands> {
        let excluded: BTreeSet<_> = self.not.iter().map(|not| not.uid.clone()).collect();
        let expected = sums(objects, &excluded);
        let stands = |object: &Object| match self.not.iter().find(|not| not.uid == object.uid) {
            Some(not) if not.generation == object.generation && !not.why.is_empty() => Stands::Refused(not.why.clone()),
            Some(_) => Stands::Waiting,
            None => match self.sums.get(&part(&object.uid)) {
                Some(sum) if expected.get(&part(&object.uid)) == Some(sum) => Stands::Published,
                _ => Stands::Unknown,
            },
        };
        objects.values().map(|object| (object.uid.clone(), stands(object))).collect()
    }

    /// Whether something of it is still to come.
    pub(super) fn waits(&self) -> bool {
        self.not.iter().any(|not| not.why.is_empty())
    }

    /// Whether all are listed that are not in force.
    pub(super) const fn is_whole(&self) -> bool {
        !self.more
    }
}

fn part(uid: &str) -> u8 {
    Sha256::digest(uid)[0] % PARTS
}

fn sums(objects: &Objects, excluded: &BTreeSet<String>) -> BTreeMap<u8, String> {
    let mut parts: BTreeMap<u8, BTreeSet<(&str, i64)>> = BTreeMap::new();
    for object in objects.values().filter(|object| !excluded.contains(&object.uid)) {
        parts.entry(part(&object.uid)).or_default().insert((&object.uid, object.generation));
    }
    let sum = |objects: BTreeSet<(&str, i64)>| {
        let mut hash = Sha256::new();
        for (uid, generation) in objects {
            hash.update(format!("{uid} {generation}\n"));
        }
        hash.finalize()[..8].iter().fold(String::new(), |mut text, byte| {
            // A String takes every text.
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    parts.into_iter().map(|(part, objects)| (part, sum(objects))).collect()
}

/// Why a policy is not in force, as far as the agent says. Empty for no reason but that it is new.
fn why(name: &str, standing: &Standing) -> String {
    let said = reasons(name, &standing.found);
    let said = if said.is_empty() { standing.refused.clone() } else { said };
    cut(&said, WORDS)
}

/// What is wrong with a policy, each with its path of fields.
pub(super) fn reasons(name: &str, found: &Diagnostics) -> String {
    let reason = |diagnostic: &Diagnostic| {
        let Diagnostic { place, message, help, notes, .. } = diagnostic;
        let mut text = match place {
            Some(place) if place.file() != name => format!("{} {}: {message}", place.file(), path_of(name, place)),
            Some(place) if !path(place).is_empty() => format!("{}: {message}", path(place)),
            _ => message.clone(),
        };
        for (place, note) in notes {
            let _ = write!(text, "; {} {}: {note}", place.file(), path_of(name, place));
        }
        if let Some(help) = help {
            let _ = write!(text, "; {help}");
        }
        text
    };
    found.0.iter().filter(|found| is_about(name, found)).map(reason).collect::<Vec<_>>().join("\n")
}

fn is_about(name: &str, found: &Diagnostic) -> bool {
    match &found.place {
        Some(place) => place.file() == name || found.notes.iter().any(|(place, _)| place.file() == name),
        None => found.message.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')),
    }
}

/// What of it is wrong with the policy on whichever node.
pub(super) fn everywhere(name: &str, found: &Diagnostics) -> Diagnostics {
    let about = || found.0.iter().filter(|found| is_about(name, found));
    let is_local = about().any(|found| found.is_local);
    // What becomes of it has no place, and follows from the rest.
    Diagnostics(about().filter(|found| !(found.is_local || is_local && found.place.is_none())).cloned().collect())
}

/// The path of another place, where it is one of an object.
fn path_of(name: &str, place: &crate::diagnostic::Place) -> String {
    match place.file() == name || place.file().contains('/') {
        true => path(place),
        false => format!("line {}", place.line),
    }
}

/// A text of at most so many characters.
pub(super) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::kinds::{Key, OURS},
        diagnostic::{Place, source},
    };

    fn objects(of: &[(&str, i64)]) -> Objects {
        let object = |(name, generation): &(&str, i64)| {
            let key = Key::new("shop".to_owned(), (*name).to_owned());
            let object = Object {
                kind: OURS[0],
                key,
                uid: format!("uid-{name}"),
                generation: *generation,
                text: "".into(),
                status: serde_json::Value::Null,
            };
            (format!("intent/shop/{name}"), Arc::new(object))
        };
        of.iter().map(object).collect()
    }

    fn standing(differ: &[&str]) -> Standing {
        Standing { differ: differ.iter().map(|name| format!("intent/shop/{name}")).collect(), ..Standing::default() }
    }

    #[test]
    fn what_is_in_force_is_known_by_its_edition() {
        let objects = objects(&[("a", 1), ("b", 7), ("c", 1)]);
        let mut standing = standing(&["b", "c"]);
        standing.found = Diagnostic::error(&Place::start(&source("intent/shop/c", "a: 1\n")), "it is wrong").into();
        let report = Report::new(&objects, &standing);
        let stand = report.stand(&objects);
        assert_eq!(stand["uid-a"], Stands::Published);
        assert_eq!(stand["uid-b"], Stands::Waiting);
        assert_eq!(stand["uid-c"], Stands::Refused("it is wrong".to_owned()));
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }

    /// One node's lack of room says nothing of the policy.
    #[test]
    fn what_is_wrong_for_one_node_is_not_wrong_everywhere() {
        let name = "intent/shop/a";
        let at = Place::start(&source(name, "a: 1\n"));
        let room = Diagnostic::error(&at, "no room").as_local();
        let instead = Diagnostic::nowhere(format!("{name} is not in force: it never was good"));
        let wrong = Diagnostic::error(&at, "it is wrong");
        let of = |found: &[&Diagnostic]| {
            let found = Diagnostics(found.iter().map(|found| (*found).clone()).collect());
            (reasons(name, &found).is_empty(), reasons(name, &everywhere(name, &found)))
        };
        assert_eq!(of(&[&room, &instead]), (false, String::new()));
        assert_eq!(of(&[&wrong, &instead]), (false, format!("it is wrong\n{}", instead.message)));
        assert_eq!(of(&[&room, &wrong, &instead]), (false, "it is wrong".to_owned()));
        assert_eq!(of(&[]), (true, String::new()));
    }

    /// Neither an edition that the agent has not, nor one that it has and the reader not, nor an object of the same name.
    #[test]
    fn another_edition_is_not_taken_for_this_one() {
        let report = Report::new(&objects(&[("a", 2)]), &standing(&[]));
        for other in [1, 3] {
            assert_eq!(report.stand(&objects(&[("a", other)]))["uid-a"], Stands::Unknown);
        }
        assert_eq!(Report::default().stand(&objects(&[("a", 2)]))["uid-a"], Stands::Unknown);
        let refused = Standing { refused: "no room".to_owned(), ..standing(&["a"]) };
        let refused = Report::new(&objects(&[("a", 2)]), &refused);
        assert_eq!(refused.stand(&objects(&[("a", 3)]))["uid-a"], Stands::Waiting, "it spoke of another edition");
        assert_eq!(refused.stand(&objects(&[("a", 2)]))["uid-a"], Stands::Refused("no room".to_owned()));
    }

    #[test]
    fn a_report_is_small_and_never_says_too_much() {
        let names: Vec<_> = (0..5000).map(|number| format!("intent-{number:04}")).collect();
        let many = objects(&names.iter().map(|name| (name.as_str(), 1)).collect::<Vec<_>>());
        let differ: Vec<_> = names.iter().take(40).map(String::as_str).collect();
        let mut standing = standing(&differ);
        standing.refused = "x".repeat(5000);
        let report = Report::new(&many, &standing);
        assert!(!report.is_whole());
        let size = serde_json::to_string(&report).unwrap().len();
        assert!(size < 16_000, "{size}");
        let stand = report.stand(&many);
        for name in &differ {
            assert_ne!(stand[&format!("uid-{name}")], Stands::Published, "{name}");
        }
        let all = Report::new(&many, &Standing::default());
        assert!(all.stand(&many).values().all(|stands| *stands == Stands::Published));
        assert!(serde_json::to_string(&all).unwrap().len() < 2000);
        // One more leaves all parts but one as they are.
        let mut more = many.clone();
        more.extend(objects(&[("new", 1)]));
        let unknown = all.stand(&more).values().filter(|stands| **stands == Stands::Unknown).count();
        assert!((1..300).contains(&unknown), "{unknown}");
    }
}
