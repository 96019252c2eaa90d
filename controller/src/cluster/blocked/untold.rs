//! What was blocked of pods and is not told yet. Pure: who asks says what time it is.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::super::events::{Budget, FORGOTTEN, MINUTE};

/// Pods of which something is kept.
const PODS: usize = 10_000;

/// A pod: namespace and name.
pub(super) type Pod = (String, String);

/// What is kept of a pod.
#[derive(Debug, Default)]
struct Kept {
    packets: u64,
    /// Since when.
    since: Option<Instant>,
    /// When it was told of last.
    told: Option<Instant>,
    /// What came last, in words, and its time.
    text: String,
    last: u64,
    /// How many calls that are not the same.
    calls: u64,
}

impl Kept {
    fn is_due(&self, now: Instant) -> bool {
        self.packets > 0 && self.told.is_none_or(|at| now >= at + MINUTE)
    }

    /// In words; it took at least as long as it is looked for.
    fn note(&self, now: Instant, look: Duration) -> String {
        let seconds = self.since.map_or(look, |since| (now - since).max(look)).as_secs();
        let others = match self.calls {
            0 | 1 => String::new(),
            calls => format!(", in {calls} kinds of calls, of which this came last"),
        };
        format!("{}; {} packets seen in {seconds} s{others}", self.text, self.packets)
    }
}

#[derive(Debug, Default)]
pub(super) struct Untold(BTreeMap<Pod, Kept>);

impl Untold {
    /// Takes packets of a call that was blocked, in words, and when it was so last.
    pub(super) fn take(&mut self, pod: Pod, text: impl FnOnce() -> String, last: u64, packets: u64, now: Instant) {
        if self.0.len() >= PODS && !self.0.contains_key(&pod) {
            return;
        }
        let kept = self.0.entry(pod).or_default();
        kept.packets += packets;
        kept.calls += 1;
        kept.since.get_or_insert(now);
        if last >= kept.last {
            (kept.last, kept.text) = (last, text());
        }
    }

    /// What is to be told now, as far as the budget goes: first of pods of which nothing was told, then of those that have waited longest.
    pub(super) fn tell(&mut self, budget: &mut Budget, now: Instant, look: Duration) -> Vec<(Pod, String)> {
        self.0.retain(|_, kept| kept.packets > 0 || kept.told.is_some_and(|at| now < at + FORGOTTEN));
        let mut due: Vec<_> = self.0.iter_mut().filter(|(_, kept)| kept.is_due(now)).collect();
        due.sort_by_key(|(_, kept)| (kept.told.is_some(), kept.since));
        let may = due.into_iter().take_while(|(_, kept)| budget.take(kept.told.is_none(), now));
        may.map(|(pod, kept)| {
            let note = kept.note(now, look);
            *kept = Kept { told: Some(now), ..Kept::default() };
            (pod.clone(), note)
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_secs(10);

    fn pod(number: usize) -> Pod {
        ("shop".to_owned(), format!("p{number:03}"))
    }

    /// Packets that a note tells of.
    fn packets(note: &str) -> u64 {
        note.split("; ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap()
    }

    /// Takes so many calls of a pod, each of one packet.
    fn blocked(untold: &mut Untold, of: usize, calls: u64, now: Instant) {
        for call in 0..calls {
            untold.take(pod(of), || format!("call {call}"), call, 1, now);
        }
    }

    #[test]
    fn of_any_number_of_calls_few_events_tell_all() {
        let (mut untold, mut budget) = (Untold::default(), Budget::default());
        let start = Instant::now();
        let mut told: Vec<(Instant, Pod, String)> = Vec::new();
        let mut given = 0;
        // Half an hour, in which 30 pods have 1,000 other calls blocked with each look.
        let looks = (0..180).map(|look| start + look * LOOK);
        for now in looks {
            for of in 0..30 {
                blocked(&mut untold, of, 1000, now);
                given += 1000;
            }
            told.extend(untold.tell(&mut budget, now, LOOK).into_iter().map(|(pod, note)| (now, pod, note)));
        }
        for (at, of, _) in &told {
            let within: Vec<_> = told.iter().filter(|(other, ..)| other >= at && *other < *at + MINUTE).collect();
            assert!(within.len() <= Budget::EVENTS, "{} events in a minute", within.len());
            assert_eq!(within.iter().filter(|(_, pod, _)| pod == of).count(), 1, "of one pod");
        }
        // The budget is used, and nobody is left out.
        assert!(told.len() > 29 * Budget::REPEATED, "{}", told.len());
        assert!((0..30).all(|of| told.iter().filter(|(_, other, _)| *other == pod(of)).count() > 4));
        let left: u64 = untold.0.values().map(|kept| kept.packets).sum();
        assert_eq!(told.iter().map(|(.., note)| packets(note)).sum::<u64>() + left, given);
    }

    #[test]
    fn the_first_of_a_pod_is_told_at_once() {
        let (mut untold, mut budget) = (Untold::default(), Budget::default());
        let start = Instant::now();
        let mut new = 100;
        for look in 0..60 {
            let now = start + look * LOOK;
            (0..30).for_each(|of| blocked(&mut untold, of, 2, now));
            let told = untold.tell(&mut budget, now, LOOK);
            // When all of them have been told of, somebody else comes now and then.
            if look > 24 && look % 3 == 0 {
                assert!(told.len() <= Budget::REPEATED);
                new += 1;
                let now = now + LOOK / 2;
                blocked(&mut untold, new, 1, now);
                let told = untold.tell(&mut budget, now, LOOK);
                assert_eq!(told[0], (pod(new), "call 0; 1 packets seen in 10 s".to_owned()));
            }
        }
    }

    #[test]
    fn what_is_told_later_tells_all_since() {
        let (mut untold, mut budget) = (Untold::default(), Budget::default());
        let start = Instant::now();
        blocked(&mut untold, 1, 1, start);
        assert_eq!(untold.tell(&mut budget, start, LOOK).len(), 1);
        blocked(&mut untold, 1, 5, start + LOOK);
        assert_eq!(untold.tell(&mut budget, start + LOOK, LOOK), [], "not again in this minute");
        let now = start + MINUTE;
        let note = "call 4; 5 packets seen in 50 s, in 5 kinds of calls, of which this came last".to_owned();
        assert_eq!(untold.tell(&mut budget, now, LOOK), [(pod(1), note)]);
        assert_eq!(untold.tell(&mut budget, now + FORGOTTEN, LOOK), [], "nothing is new");
        assert!(untold.0.is_empty(), "nothing is kept of who was quiet for long");
    }

    #[test]
    fn what_is_kept_has_an_end() {
        let mut untold = Untold::default();
        (0..2 * PODS).for_each(|of| blocked(&mut untold, of, 1, Instant::now()));
        assert_eq!(untold.0.len(), PODS);
    }
}
