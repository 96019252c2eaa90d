//! A process that puts one revision after the other in force and is killed at any moment, again and again on the same database.
//!
//! That process is this very test, run again with [`LIFE`] set.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use bulkhead_controller::store::{Condition, Store};
use bulkhead_fixtures::skip;
use tempfile::TempDir;

use crate::support::draft;

/// State directory of the process that is to be killed.
const LIFE: &str = "BULKHEAD_STORE_LIFE";

/// Ends with its owner, also when a test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Stages, says so, commits and says so, until it is killed.
fn live(state: &Path) -> ! {
    let mut store = Store::open(state).unwrap();
    loop {
        let version = store.reader().latest().unwrap().map_or(1, |latest| latest.number + 1);
        let number = store.stage(&draft(version, 3000, None)).unwrap().head.number;
        println!("staged {number}");
        store.commit(number).unwrap();
        println!("in force {number}");
    }
}

#[test]
fn a_process_that_is_killed_leaves_the_old_or_the_new_revision() {
    if let Some(state) = env::var_os(LIFE) {
        live(Path::new(&state));
    }
    // On the disk, where writing takes its time.
    let directory = TempDir::new().unwrap();
    let mut moments = fastrand::Rng::with_seed(7);
    let (mut staged, mut in_force, mut refused) = (0, 0, 0);
    for life in 0..if skip::long() { 300 } else { 40 } {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "killed::a_process_that_is_killed_leaves_the_old_or_the_new_revision", "--nocapture"]);
        let child = command.env(LIFE, directory.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut child = Killed(child);
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map_while(Result::ok);
        // Some lives end while they begin, the others somewhere in their work.
        let work = life % 5 != 0;
        // The harness may have written before it on the same line.
        let number = |line: &str, word: &str| line.split_once(word)?.1.parse::<u64>().ok();
        let mut heard = |line: &str| {
            staged = number(line, "staged ").unwrap_or(staged);
            in_force = number(line, "in force ").unwrap_or(in_force);
        };
        while work && let Some(line) = lines.next() {
            heard(&line);
            if line.contains("in force") {
                break;
            }
        }
        thread::sleep(Duration::from_micros(moments.u64(0..if work { 9_000 } else { 30_000 })));
        drop(child);
        lines.for_each(|line| heard(&line));

        let mut store = Store::open(directory.path()).unwrap();
        let found = store.reader().in_force().unwrap();
        let number = found.as_ref().map_or(0, |revision| revision.head.number);
        let latest = store.reader().latest().unwrap();
        let (last, condition) = latest.map_or((0, None), |latest| (latest.number, Some(latest.condition)));
        // What it said that it had done is there; it may have done one thing more before it could say so.
        assert!((staged..=staged + 1).contains(&last), "life {life}: said {staged}, found {last}");
        assert!([in_force, last].contains(&number), "life {life}: said {in_force}, found {number}");
        if let Some(revision) = found {
            assert_eq!(revision.inputs, draft(number, 3000, None).inputs);
        }
        let pending = store.reader().staged().unwrap().map(|revision| revision.head.number);
        match condition {
            None => assert_eq!((last, number, pending), (0, 0, None)),
            Some(Condition::InForce) => assert_eq!((number, pending), (last, None), "life {life}"),
            Some(Condition::Staged) => {
                assert_eq!(pending, Some(last), "life {life}");
                store.refuse(last, "killed").unwrap();
                refused = last;
            }
            Some(Condition::Refused { .. }) => assert_eq!((last, pending), (refused, None), "life {life}"),
            Some(Condition::Superseded) => panic!("life {life}: the latest revision is superseded"),
        }
        (staged, in_force) = (last, number);
    }
    assert!(in_force > 40, "{in_force} revisions were in force");
}
