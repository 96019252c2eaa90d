//! A node's files as its runtime has them, and the program that changes them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use bulkhead_tests::{bulkhead, chain::Chain};
use bulkhead_topology::Netns;
use serde_json::json;
use tempfile::TempDir;

/// The name of ours that comes before all others.
pub(crate) const FIRST: &str = "00-bulkhead.conflist";
/// That of the owner's.
pub(crate) const OWNERS: &str = "10-flannel.conflist";

/// A node's files as a runtime has them, in a directory.
pub(crate) struct Files {
    pub(crate) netns: Netns,
    home: TempDir,
}

impl Files {
    pub(crate) fn new(netns: &Netns) -> Self {
        let files = Self { netns: netns.clone(), home: tempfile::tempdir().unwrap() };
        for directory in ["net.d", "plugins", "cache/results"] {
            fs::create_dir_all(files.at(directory)).unwrap();
        }
        files
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.home.path().join(path)
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        fs::write(self.at("net.d").join(file), text).unwrap();
    }

    pub(crate) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.at("net.d").join(file)).unwrap()
    }

    /// All files but the programs, by path.
    pub(crate) fn all(&self) -> BTreeMap<PathBuf, String> {
        let found = Command::new("find").arg(self.home.path()).args(["-type", "f"]).output().unwrap();
        let paths = String::from_utf8(found.stdout).unwrap();
        let paths = paths.lines().map(PathBuf::from);
        let text = |path: &Path| fs::read(path).map(|text| String::from_utf8(text).unwrap_or_default()).unwrap();
        paths.map(|path| (path.strip_prefix(self.home.path()).unwrap().to_owned(), text(&path))).collect()
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.netns.command(bulkhead().unwrap()).args(words).args(["--record"]).arg(self.at("record")).output().unwrap()
    }

    #[track_caller]
    pub(crate) fn good(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{words:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    /// What is wrong, without the line breaks of the terminal.
    #[track_caller]
    pub(crate) fn bad(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(!output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr)
            .unwrap()
            .split_whitespace()
            .filter(|word| *word != "│")
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Words of `bulkhead install` for this directory.
    pub(crate) fn install(&self, runtime: &str, more: &[&str]) -> Vec<String> {
        let at = |path: &str| self.at(path).display().to_string();
        let words =
            ["install", "--runtime", runtime, "--networks", &at("net.d"), "--plugins", &at("plugins"), "--no-units"];
        words.iter().chain(more).map(|word| (*word).to_owned()).collect()
    }
}

pub(crate) fn words(of: &[String]) -> Vec<&str> {
    of.iter().map(String::as_str).collect()
}

/// `bulkhead follow`; ends with this.
pub(crate) struct Follow(Child);

impl Follow {
    pub(crate) fn start(files: &Files) -> Self {
        let mut command = files.netns.command(bulkhead().unwrap());
        command.arg("follow").arg("--record").arg(files.at("record"));
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    pub(crate) fn ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some_and(|status| status.success())
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As flannel's DaemonSet writes it, for a bridge that the driver calls itself.
pub(crate) fn owners(chain: &Chain<'_>) -> String {
    let others: Vec<_> = chain.plugins.iter().filter(|plugin| plugin["type"] != "bulkhead-cni").collect();
    let list = json!({ "name": "lab", "cniVersion": "1.0.0", "plugins": others });
    serde_json::to_string_pretty(&list).unwrap()
}

/// The owner rewrites his network while something goes on: not a moment of quiet, and the file as a runtime must never take it for most of the time.
pub(crate) fn while_rewritten<R>(files: &Files, text: &str, call: impl FnOnce() -> R) -> R {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                files.write(OWNERS, &text[..text.len() / 2]);
                thread::sleep(Duration::from_millis(3));
                files.write(OWNERS, text);
                thread::sleep(Duration::from_millis(3));
                fs::remove_file(files.at("net.d").join(OWNERS)).unwrap();
                files.write(OWNERS, text);
            }
        });
        // Also where the call panics, which would else wait for this thread for ever.
        let _stop = Stop(&stop);
        call()
    })
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
