//! Where our plugin goes among the files of a directory of networks. Pure.

use std::{collections::BTreeMap, fmt, path::Path};

use bulkhead_dataplane::cni::PLUGIN;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::conflist::{Conflist, Unusable};

/// The file that comes before all others.
pub const FIRST: &str = "00-bulkhead.conflist";

/// How a runtime chooses among files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// It takes the first by name: ours is the owner's chain with our plugin behind it, and the owner's own file stays as it is.
    First,
    /// It takes the one that it is told: the owner's file is changed.
    InPlace,
}

/// A directory's files that runtimes read, by name.
pub type Directory = BTreeMap<String, Vec<u8>>;

/// What is to be done, and what somebody should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Files to be written, by name.
    pub write: BTreeMap<String, String>,
    /// What stood in files before ours was put into them, by name: copies to be kept.
    pub keep: BTreeMap<String, Vec<u8>>,
    /// Networks whose containers are held until they are guarded, and the files that say so.
    pub guarded: Vec<(String, String)>,
    /// Networks that are not.
    pub unguarded: Vec<Unguarded>,
}

/// A file that is left as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unguarded {
    /// Its name.
    pub file: String,
    /// Why.
    pub why: Unusable,
}

impl fmt::Display for Unguarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.file, self.why)
    }
}

/// Why nothing can be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The file that the runtime takes cannot be used.
    #[error("{0}; nothing is changed")]
    Owner(Unguarded),
    /// Another file would be taken instead of ours.
    #[error(
        "{0} comes before {FIRST}, and a runtime would take it instead: rename it to something that comes behind, such as 05-{0}"
    )]
    Before(String),
}

/// Whether runtimes look at a file of this name.
#[must_use]
pub fn is_network(name: &str) -> bool {
    // Those that libcni reads.
    Path::new(name).extension().is_some_and(|extension| ["conf", "conflist", "json"].iter().any(|of| extension == *of))
}

fn read(name: &str, text: &[u8]) -> Result<Conflist, Unguarded> {
    Conflist::guardable(text, is_single(name)).map_err(|why| Unguarded { file: name.to_owned(), why })
}

/// Whether a file of this name holds one plugin instead of a list.
fn is_single(name: &str) -> bool {
    !name.ends_with(".conflist")
}

/// Our file out of the owner's, who need not be there yet: his rewriting it takes nothing away.
///
/// # Errors
/// His file cannot be used, or ours would not be the first.
pub fn first(files: &Directory, entry: &Map<String, Value>) -> Result<Changes, Refused> {
    let mut changes = Changes::default();
    let Some((name, text)) = files.iter().find(|(name, _)| *name != FIRST) else { return Ok(changes) };
    if name.as_str() < FIRST {
        return Err(Refused::Before(name.clone()));
    }
    let chain = read(name, text).map_err(Refused::Owner)?;
    let ours = chain.with(entry);
    changes.guarded.push((chain.name, FIRST.to_owned()));
    if files.get(FIRST).is_none_or(|there| there.as_slice() != ours.as_bytes()) {
        changes.write.insert(FIRST.to_owned(), ours);
    }
    Ok(changes)
}

/// Our plugin at the end of every chain, or of those of the networks `only` names.
#[must_use]
pub fn in_place(files: &Directory, only: &[String], entry: &Map<String, Value>) -> Changes {
    let mut changes = Changes::default();
    for (file, text) in files {
        if !only.is_empty() && Conflist::name_of(text).is_none_or(|name| !only.contains(&name)) {
            continue;
        }
        let list = if !is_single(file) {
            read(file, text)
        } else {
            let why = "it holds one plugin, behind which no other can stand: make a .conflist of it".to_owned();
            Err(Unguarded { file: file.clone(), why: Unusable::Form(why) })
        };
        match list {
            Err(unguarded) => changes.unguarded.push(unguarded),
            Ok(chain) => {
                if !chain.ends_with(entry) {
                    // With ours in it already it is no original.
                    if !chain.has_ours() {
                        changes.keep.insert(file.clone(), text.clone());
                    }
                    changes.write.insert(file.clone(), chain.with(entry));
                }
                changes.guarded.push((chain.name, file.clone()));
            }
        }
    }
    changes
}

/// What takes our plugin out again: texts to be written, and files to be removed. An original is put back where nobody has written since. Whether a
/// network could be guarded does not matter here.
///
/// # Errors
/// A file that names our plugin cannot be read, so that it would stay there.
pub fn out(
    files: &Directory,
    originals: &Directory,
    entry: &Map<String, Value>,
) -> Result<(BTreeMap<String, Vec<u8>>, Vec<String>), Refused> {
    let mut write = BTreeMap::new();
    for (file, text) in files.iter().filter(|(file, _)| *file != FIRST) {
        let chain = match Conflist::read(text, is_single(file)) {
            Ok(chain) if chain.has_ours() => chain,
            Err(why) if String::from_utf8_lossy(text).contains(PLUGIN) => {
                return Err(Refused::Owner(Unguarded { file: file.clone(), why }));
            }
            _ => continue,
        };
        let original = originals.get(file);
        let untouched = original.filter(|original| {
            read(file, original).is_ok_and(|original| original.with(entry).as_bytes() == text.as_slice())
        });
        write.insert(file.clone(), untouched.cloned().unwrap_or_else(|| chain.without().into_bytes()));
    }
    Ok((write, files.keys().filter(|file| *file == FIRST).cloned().collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn entry() -> Map<String, Value> {
        json!({ "type": "bulkhead-cni", "mode": "observe" }).as_object().unwrap().clone()
    }

    fn chain(name: &str, plugin: &str) -> Vec<u8> {
        format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"{plugin}"}}]}}"#).into_bytes()
    }

    fn directory(files: &[(&str, Vec<u8>)]) -> Directory {
        files.iter().map(|(name, text)| ((*name).to_owned(), text.clone())).collect()
    }

    #[test]
    fn the_first_file_is_ours_with_the_owners_chain() {
        let mut files = directory(&[("10-flannel.conflist", chain("cbr0", "flannel")), ("20.conf", chain("b", "ptp"))]);
        let changes = first(&files, &entry()).unwrap();
        assert_eq!(changes.guarded, [("cbr0".to_owned(), FIRST.to_owned())]);
        assert!(changes.keep.is_empty(), "nothing of the owner's is changed");
        files.insert(FIRST.to_owned(), changes.write[FIRST].clone().into_bytes());
        assert!(first(&files, &entry()).unwrap().write.is_empty());
        // Between two writes of the owner's the file may be away: ours stays.
        files.remove("10-flannel.conflist");
        files.remove("20.conf");
        assert_eq!(first(&files, &entry()).unwrap(), Changes::default());
        assert_eq!(out(&files, &Directory::new(), &entry()), Ok((BTreeMap::new(), vec![FIRST.to_owned()])));
    }

    #[test]
    fn what_a_runtime_would_take_instead_is_refused() {
        let files = directory(&[("00-a.conflist", chain("a", "bridge"))]);
        assert_eq!(first(&files, &entry()), Err(Refused::Before("00-a.conflist".to_owned())));
        let files = directory(&[("10-half.conflist", b"{".to_vec()), ("20-b.conflist", chain("b", "bridge"))]);
        let refused = first(&files, &entry()).unwrap_err().to_string();
        assert!(refused.starts_with("10-half.conflist is no network configuration"), "{refused}");
    }

    #[test]
    fn others_are_left_alone() {
        let files = directory(&[
            ("a.conflist", chain("a", "bridge")),
            ("b.conflist", chain("b", "macvlan")),
            ("c.conf", chain("c", "bridge")),
            ("d.conflist", chain("d", "bridge")),
        ]);
        let changes = in_place(&files, &[], &entry());
        assert_eq!(changes.write.keys().collect::<Vec<_>>(), ["a.conflist", "d.conflist"]);
        let told: Vec<_> = changes.unguarded.iter().map(ToString::to_string).collect();
        assert!(told[0].starts_with("b.conflist is made by the plugin `macvlan`"), "{told:?}");
        assert!(told[1].contains("make a .conflist of it"), "{told:?}");
        let changes = in_place(&files, &["d".to_owned()], &entry());
        assert_eq!(changes.write.keys().collect::<Vec<_>>(), ["d.conflist"]);
        assert!(changes.unguarded.is_empty());
    }

    /// Whatever else its owner made of it meanwhile.
    #[test]
    fn ours_goes_out_of_what_could_not_be_guarded_any_more() {
        let text = String::from_utf8(chain("a", "bridge")).unwrap();
        let with = Conflist::guardable(text.as_bytes(), false).unwrap().with(&entry());
        for (from, to) in [("bridge", "macvlan"), ("1.0.0", "0.2.0")] {
            let files = directory(&[("a.conflist", with.replace(from, to).into_bytes())]);
            let (write, _) = out(&files, &Directory::new(), &entry()).unwrap();
            let left: Value = serde_json::from_slice(&write["a.conflist"]).unwrap();
            assert_eq!(left, serde_json::from_str::<Value>(&text.replace(from, to)).unwrap());
        }
        let files = directory(&[("a.conflist", with.as_bytes()[..with.len() - 3].to_vec())]);
        assert!(out(&files, &Directory::new(), &entry()).is_err());
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// The owner writes a chain.
        Owner(usize, bool),
        /// The owner takes ours out of what is there, or another tool reformats the file.
        Reformat(usize),
        Remove(usize),
        Follow,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3usize, any::<bool>()).prop_map(|(file, ours)| Step::Owner(file, ours)),
            (0..3usize).prop_map(Step::Reformat),
            (0..3usize).prop_map(Step::Remove),
            Just(Step::Follow),
        ]
    }

    proptest! {
        /// Whatever owners do in between: afterwards every chain ends with ours, and once it is taken out, owners have what they wrote last.
        #[test]
        fn in_and_out_is_what_owners_wrote(steps in proptest::collection::vec(step(), 1..20)) {
            let name = |file: usize| format!("{file}.conflist");
            let (mut files, mut originals) = (Directory::new(), Directory::new());
            // What each file means to its owner.
            let mut meant: BTreeMap<String, Value> = BTreeMap::new();
            let mut count = 0;
            let follow = |files: &mut Directory, originals: &mut Directory| {
                let Changes { write, keep, .. } = in_place(files, &[], &entry());
                originals.extend(keep);
                files.extend(write.into_iter().map(|(file, text)| (file, text.into_bytes())));
            };
            for step in steps {
                match step {
                    Step::Owner(file, ours) => {
                        count += 1;
                        let text = chain(&format!("n{count}"), "bridge");
                        meant.insert(name(file), serde_json::from_slice(&text).unwrap());
                        let list = Conflist::guardable(&text, false).unwrap();
                        files.insert(name(file), if ours { list.with(&entry()).into_bytes() } else { text });
                    }
                    Step::Reformat(file) => {
                        if let Some(text) = files.get_mut(&name(file)) {
                            let value: Value = serde_json::from_slice(text).unwrap();
                            *text = serde_json::to_vec_pretty(&value).unwrap();
                        }
                    }
                    Step::Remove(file) => {
                        files.remove(&name(file));
                        meant.remove(&name(file));
                    }
                    Step::Follow => follow(&mut files, &mut originals),
                }
            }
            follow(&mut files, &mut originals);
            for text in files.values() {
                prop_assert!(Conflist::guardable(text, false).unwrap().ends_with(&entry()));
            }
            prop_assert!(in_place(&files, &[], &entry()).write.is_empty());
            let (write, remove) = out(&files, &originals, &entry()).unwrap();
            prop_assert!(remove.is_empty());
            files.extend(write);
            let left: BTreeMap<_, Value> =
                files.iter().map(|(file, text)| (file.clone(), serde_json::from_slice(text).unwrap())).collect();
            prop_assert_eq!(left, meant);
        }
    }
}
