//! Drift: guards that stood and were found missing, and what became of them. Somebody has taken them away, or their link is gone.

use std::collections::BTreeSet;

use bulkhead_dataplane::node::Status;

use crate::agent::Unguarded;

/// A guard: its link, empty for the node, and what it is.
type Guard = (String, String);

/// What was found missing since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    missing: BTreeSet<Guard>,
    /// Guards that were found missing.
    pub found: u64,
    /// Those of them that were put back.
    pub repaired: u64,
    /// When something was found last, nanoseconds of Unix time, and what.
    pub latest: Option<(u64, String)>,
}

/// What is missing on a node, on which the input rule is `needed` or not.
pub(crate) fn missing(status: &Status, needed: bool) -> BTreeSet<Guard> {
    let mut missing: BTreeSet<Guard> =
        status.missing.iter().map(|guard| (guard.link.clone(), guard.guard.clone())).collect();
    for endpoint in status.endpoints.iter().filter(|endpoint| !endpoint.attached) {
        // Which of its two programs, some nodes can tell.
        if !missing.iter().any(|(link, _)| *link == endpoint.link) {
            missing.insert((endpoint.link.clone(), "guard of an endpoint".to_owned()));
        }
    }
    if needed && !status.input_rule {
        missing.insert((String::new(), "input rule".to_owned()));
    }
    missing
}

fn text<'a>(guards: impl IntoIterator<Item = &'a Guard>) -> String {
    let text = |(link, guard): &Guard| if link.is_empty() { guard.clone() } else { format!("{guard} on {link}") };
    guards.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

impl Drift {
    /// Takes what is missing `now`. What of it was not missing before, in words.
    pub(crate) fn find(&mut self, missing: BTreeSet<Guard>, now: u64) -> Option<String> {
        let news: Vec<_> = missing.difference(&self.missing).cloned().collect();
        self.missing = missing;
        if news.is_empty() {
            return None;
        }
        self.found += news.len() as u64;
        let what = text(&news);
        self.latest = Some((now, what.clone()));
        Some(what)
    }

    /// All guards were put up but those of `unguarded`, and those of links that nobody wants guarded any more. What of it was missing, in words.
    pub(crate) fn repair(&mut self, unguarded: &[Unguarded], unwanted: impl Fn(&str) -> bool) -> Option<String> {
        self.missing.retain(|(link, _)| !unwanted(link));
        let still = |(link, _): &Guard| unguarded.iter().any(|unguarded| unguarded.link == *link);
        let (left, back): (BTreeSet<_>, BTreeSet<_>) = std::mem::take(&mut self.missing).into_iter().partition(still);
        self.missing = left;
        self.repaired += back.len() as u64;
        (!back.is_empty()).then(|| text(&back))
    }

    /// Nothing is missing, as far as it was looked at.
    pub(crate) fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }

    /// What is missing, in words; empty when nothing is.
    #[must_use]
    pub fn missing(&self) -> String {
        text(&self.missing)
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_dataplane::node::LinkStatus;

    use super::*;

    fn lacks(guards: &[(&str, &str)], input_rule: bool) -> Status {
        let guard = |(link, guard): &(&str, &str)| LinkStatus { link: (*link).to_owned(), guard: (*guard).to_owned() };
        Status { missing: guards.iter().map(guard).collect(), input_rule, ..Status::default() }
    }

    #[test]
    fn what_is_missing_is_told_once_and_counted() {
        let mut drift = Drift::default();
        let eth0 = [("eth0", "ingress underlay")];
        assert_eq!(drift.find(missing(&lacks(&[], true), true), 1), None);
        assert_eq!(drift.find(missing(&lacks(&[], false), false), 2), None, "it is not needed");
        let found = drift.find(missing(&lacks(&eth0, false), true), 3);
        assert_eq!(found.as_deref(), Some("input rule, ingress underlay on eth0"));
        assert_eq!(drift.find(missing(&lacks(&eth0, false), true), 4), None, "it is known");
        assert_eq!((drift.found, drift.repaired, drift.is_whole()), (2, 0, false));

        let why = String::new();
        let unguarded = [Unguarded { endpoint: String::new(), link: "eth0".to_owned(), why }];
        assert_eq!(drift.repair(&unguarded, |_| false).as_deref(), Some("input rule"));
        assert_eq!((drift.missing().as_str(), drift.repaired), ("ingress underlay on eth0", 1));
        assert_eq!(drift.repair(&[], |_| false).as_deref(), Some("ingress underlay on eth0"));
        assert_eq!(drift.repair(&[], |_| false), None);
        assert_eq!((drift.found, drift.repaired, drift.is_whole()), (2, 2, true));
        assert_eq!(drift.latest, Some((3, "input rule, ingress underlay on eth0".to_owned())));

        // Gone again is found again.
        assert!(drift.find(missing(&lacks(&eth0, true), true), 5).is_some());
        assert_eq!((drift.found, drift.latest.as_ref().unwrap().0), (3, 5));
        // A container that stopped, and is not wanted any more.
        assert_eq!(drift.repair(&[], |link| link == "eth0"), None);
        assert_eq!((drift.found, drift.repaired, drift.is_whole()), (3, 2, true));
    }
}
