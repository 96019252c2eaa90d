//! Calls, and who answers them.

use std::{collections::BTreeSet, process::Command, thread, time::Instant};

use bulkhead_tests::guarded::PATIENCE;

use super::shop::Shop;

/// Nobody answers.
pub(super) const NOBODY: &str = "nobody";
/// So often each is called at once.
const TIMES: usize = 4;
/// Says who answers a call.
const ASK: &str =
    "ask() { echo \"$1 $(busybox timeout 1 busybox wget -q -O - http://$2 2>/dev/null || echo nobody)\"; }\n";

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Caller {
    /// A pod of the shop.
    Pod(&'static str),
    /// A process of a node.
    Node(usize),
    /// A host of the underlay that is no node.
    Outside,
}

/// Who calls, what, and who answers, by turns.
pub(super) type Call<'a> = (Caller, &'a str, &'a [&'a str]);

impl Shop {
    /// Waits until all calls end as they should, those of all callers at once; who answers by turns is waited for.
    #[track_caller]
    pub(super) fn expect(&self, calls: &[Call<'_>]) {
        let urls: Vec<_> = calls.iter().map(|&(from, to, _)| (from, format!("{to}/hostname"))).collect();
        let mut seen = vec![BTreeSet::new(); calls.len()];
        let start = Instant::now();
        loop {
            for ((seen, answers), (.., names)) in seen.iter_mut().zip(self.ask(&urls)).zip(calls) {
                // A policy that came just now, or a busy machine.
                if seen.iter().any(|name: &String| !names.contains(&name.as_str())) {
                    seen.clear();
                }
                seen.extend(answers);
            }
            if calls.iter().zip(&seen).all(|((.., names), seen)| {
                seen.iter().map(String::as_str).eq(BTreeSet::from_iter(names.iter().copied()))
            }) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{:#?}", calls.iter().zip(&seen).collect::<Vec<_>>());
        }
    }

    /// What a pod is told of the address of a service.
    pub(super) fn resolve(&self, pod: &'static str, service: &str) -> Option<String> {
        let script =
            format!("busybox timeout 1 nslookup {service}.shop.svc.cluster.local 2>&1 && echo resolved || true");
        let said = self.run(Caller::Pod(pod), &script);
        Some(said.strip_suffix("resolved\n")?.to_owned())
    }

    /// Address that a server sees a caller come from.
    pub(super) fn seen_as(&self, from: Caller, to: &str) -> BTreeSet<String> {
        let mut answers = self.ask(&[(from, format!("{to}/clientip"))]).remove(0);
        answers.remove(NOBODY);
        answers.iter().map(|answer| answer.rsplit_once(':').unwrap().0.to_owned()).collect()
    }

    /// What some get of servers by HTTP, each asked some times at once.
    pub(super) fn ask(&self, calls: &[(Caller, String)]) -> Vec<BTreeSet<String>> {
        let script = |from| {
            let mut script = ASK.to_owned();
            for (number, (_, url)) in calls.iter().enumerate().filter(|(_, call)| call.0 == from) {
                script.push_str(&format!("ask {number} {url} &\n").repeat(TIMES));
            }
            script + "wait\n"
        };
        let callers: BTreeSet<Caller> = calls.iter().map(|&(from, _)| from).collect();
        let said: Vec<_> = thread::scope(|scope| {
            let shells: Vec<_> =
                callers.into_iter().map(|from| scope.spawn(move || self.run(from, &script(from)))).collect();
            shells.into_iter().map(|shell| shell.join().unwrap()).collect()
        });
        let mut answers = vec![BTreeSet::new(); calls.len()];
        for line in said.iter().flat_map(|said| said.lines()) {
            let (number, answer) = line.split_once(' ').unwrap();
            answers[number.parse::<usize>().unwrap()].insert(answer.trim().to_owned());
        }
        answers
    }

    /// What a shell prints.
    pub(super) fn run(&self, from: Caller, script: &str) -> String {
        let shell = |mut command: Command| {
            let output = command.args(["-c", script]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        match from {
            Caller::Pod(pod) => self.guarded.kubectl(&["--namespace=shop", "exec", pod, "--", "sh", "-c", script]),
            Caller::Node(node) => shell(self.guarded.cluster.node(node).command("sh")),
            Caller::Outside => shell(self.guarded.cluster.control_plane().command("sh")),
        }
    }
}
