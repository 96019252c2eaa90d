//! What kubectl prints of a cluster, and what is said by that without the cluster.

use std::{fs, path::PathBuf, process::Command, thread};

use serde_json::Value;

use bulkhead_tests::{bulkhead, guarded::Guarded};

/// A directory of JSON.
pub(crate) struct Dump(PathBuf);

impl Dump {
    /// A file for each of these, which may be several kinds with commas between them.
    pub(crate) fn of(guarded: &Guarded, kinds: &[&str]) -> Self {
        let dump = Self(guarded.cluster.directory().join("dump"));
        fs::create_dir(&dump.0).unwrap();
        for kinds in kinds {
            let printed = guarded.kubectl(&["get", kinds, "--all-namespaces", "--output=json"]);
            fs::write(dump.file(kinds), printed).unwrap();
        }
        dump
    }

    fn file(&self, kinds: &str) -> PathBuf {
        self.0.join(format!("{kinds}.json"))
    }

    /// Goes on without one of the files.
    pub(crate) fn without(self, kinds: &str) -> Self {
        fs::remove_file(self.file(kinds)).unwrap();
        self
    }

    /// Exit status, what is printed, and what is noted beside it.
    pub(crate) fn said(&self, words: &[&str]) -> (Option<i32>, [String; 2]) {
        let output = Command::new(bulkhead().unwrap()).args(words).arg(&self.0).output().unwrap();
        (output.status.code(), [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()))
    }

    /// Whether one pod of the shop may call port 8080 of another, and why.
    pub(crate) fn explain(&self, from: &str, to: &str) -> (bool, String) {
        let [from, to] = [from, to].map(|pod| format!("shop/{pod}"));
        let (code, text) = self.said(&["explain", "--from", &from, "--to", &to, "--port", "8080"]);
        let text = text.concat();
        assert!(matches!(code, Some(0 | 1)), "{text}");
        (code == Some(0), text)
    }

    /// Each calls each, and what comes of it is what is explained.
    #[track_caller]
    pub(crate) fn explains_what_is(&self, guarded: &Guarded, pods: &[&str]) {
        let called: Vec<_> = pods.iter().map(|pod| (*pod, format!("{}:8080", guarded.address(pod)))).collect();
        thread::scope(|scope| {
            for from in pods {
                let others: Vec<_> = called.iter().filter(|(to, _)| to != from).collect();
                scope.spawn(move || {
                    for (to, address) in others {
                        let (passes, why) = self.explain(from, to);
                        assert_eq!(guarded.connects(from, address), passes, "{from} to {to}: {why}");
                    }
                });
            }
        });
    }

    /// What lint finds: the check and what it says, of what is of the shop.
    pub(crate) fn lint(&self) -> Vec<String> {
        let (code, [printed, noted]) = self.said(&["lint", "--json"]);
        assert_eq!(code, Some(1), "{printed}{noted}");
        let found: Vec<Value> = serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
        let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
        let said = found.iter().map(|finding| format!("{}: {}", text(finding, "check"), text(finding, "message")));
        said.filter(|said| said.contains("shop/")).collect()
    }
}
