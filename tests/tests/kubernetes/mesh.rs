//! Pods of the shop that all call each other, again and again: under the shop's policy no pair may ever see another verdict than its own.

use std::collections::BTreeMap;

use bulkhead_tests::guarded::{Guarded, eventually, pod};

/// Who calls whom; under these names the shop's policy knows them.
pub(crate) const MEMBERS: [&str; 4] = ["db", "web", "guest", "near"];

/// Serves, and calls whoever is listed in a file.
pub(crate) fn member(name: &str, node: &str) -> String {
    let call = "if /agnhost connect $to:8080 --timeout=1s; then echo answered $to; else echo silent $to; fi";
    let script = format!(
        "/agnhost netexec & while true; do for to in $(cat /tmp/peers 2>/dev/null); do ({call}) & done; sleep 1.5; done"
    );
    pod(name, node, &format!("command: [sh, -c, '{script}']"))
}

/// Whether the shop's policy lets one call another: `web` alone calls `db`, and who is neither calls nobody.
fn may_call(from: &str, to: &str) -> bool {
    from == "web" || from == "db" && to != "db"
}

/// Names of the members by their addresses.
pub(crate) struct Mesh(BTreeMap<String, &'static str>);

impl Mesh {
    /// Has all call all others.
    pub(crate) fn begin(guarded: &Guarded) -> Self {
        guarded.wait_for(&MEMBERS);
        let names: BTreeMap<_, _> = MEMBERS.iter().map(|name| (guarded.address(name), *name)).collect();
        for from in MEMBERS {
            let others = names.iter().filter(|(_, name)| **name != from).map(|(address, _)| address.as_str());
            let write = format!("echo {} > /tmp/peers", others.collect::<Vec<_>>().join(" "));
            guarded.kubectl(&["--namespace=shop", "exec", from, "--", "sh", "-c", &write]);
        }
        Self(names)
    }

    /// What the calls of each pair came to, in order: whether they were answered.
    fn calls(&self, guarded: &Guarded) -> BTreeMap<(&'static str, &'static str), Vec<bool>> {
        let pairs = MEMBERS.iter().flat_map(|from| MEMBERS.iter().map(move |to| (*from, *to)));
        let mut calls: BTreeMap<_, Vec<_>> =
            pairs.filter(|(from, to)| from != to).map(|pair| (pair, Vec::new())).collect();
        for from in MEMBERS {
            let log = guarded.kubectl(&["--namespace=shop", "logs", from]);
            for line in log.lines() {
                let Some((said @ ("answered" | "silent"), address)) = line.split_once(' ') else { continue };
                calls.get_mut(&(from, self.0[address])).unwrap().push(said == "answered");
            }
        }
        calls
    }

    /// Waits until each pair has called more often.
    pub(crate) fn goes_on(&self, guarded: &Guarded, what: &str) {
        let before = self.calls(guarded);
        let more = || self.calls(guarded).iter().all(|(pair, calls)| calls.len() > before[pair].len() + 3);
        eventually(&format!("all pairs call on: {what}"), more);
    }

    /// Looks at all calls of all pairs since they began.
    #[track_caller]
    pub(crate) fn assert_unchanged(&self, guarded: &Guarded) {
        for ((from, to), calls) in self.calls(guarded) {
            let may = may_call(from, to);
            // The node of a callee hears of a new caller's address when the API server does.
            let calls: Vec<_> = calls.into_iter().skip_while(|answered| may && !answered).collect();
            assert!(calls.len() > 10 && calls.iter().all(|answered| *answered == may), "{from} to {to}: {calls:?}");
        }
    }
}
