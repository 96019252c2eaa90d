//! What was blocked of pods and is not told yet. Pure: who asks says what time it is.

use std::{
    collections::BTreeMap,
    mem,
    time::{Duration, Instant},
};

use super::super::events::{Budget, FORGOTTEN, MINUTE};

/// Pods of which something is kept.
const PODS: usize = 10_000;

/// A pod: namespace and name.
pub(super) type Pod = (String, String);

/// What is kept of a pod.
#[derive(Debug)]
struct Kept<C> {
    packets: u64,
    /// Since when.
    since: Option<Instant>,
    /// When it was told of last.
    told: Option<Instant>,
    /// What came last, and its time.
    call: Option<C>,
    last: u64,
    /// How many calls that are not the same.
    calls: u64,
}

impl<C> Kept<C> {
    const fn new(told: Option<Instant>) -> Self {
        Self { packets: 0, since: None, told, call: None, last: 0, calls: 0 }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.packets > 0 && self.told.is_none_or(|at| now >= at + MINUTE)
    }

    /// How much it was, in words; it took at least as long as it is looked for.
    fn extent(&self, now: Instant, look: Duration) -> String {
        let seconds = self.since.map_or(look, |since| (now - since).max(look)).as_secs();
        let others = match self.calls {
            0 | 1 => String::new(),
            calls => format!(", in {calls} kinds of calls, of which this came last"),
        };
        format!("{} packets seen in {seconds} s{others}", self.packets)
    }
}

/// What is to be told of a pod: the call that came last, and how much there was of all.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due<C> {
    pub(super) pod: Pod,
    pub(super) call: C,
    pub(super) extent: String,
}

/// Calls in whichever form: what they are about is put in words only when they are told.
#[derive(Debug)]
pub(super) struct Untold<C>(BTreeMap<Pod, Kept<C>>);

impl<C> Default for Untold<C> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<C> Untold<C> {
    /// Takes packets of a call that was blocked, and when it was so last.
    pub(super) fn take(&mut self, pod: Pod, call: C, last: u64, packets: u64, now: Instant) {
        if self.0.len() >= PODS && !self.0.contains_key(&pod) {
            return;
        }
        let kept = self.0.entry(pod).or_insert_with(|| Kept::new(None));
        kept.packets += packets;
        kept.calls += 1;
        kept.since.get_or_insert(now);
        if last >= kept.last {
            (kept.last, kept.call) = (last, Some(call));
        }
    }

    /// Whether something is to be told, if the budget goes as far.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.0.values().any(|kept| kept.is_due(now))
    }

    /// What is to be told now, as far as the budget goes: first of pods of which nothing was told, then of those that have waited longest.
    pub(super) fn tell(&mut self, budget: &mut Budget, now: Instant, look: Duration) -> Vec<Due<C>> {
        self.0.retain(|_, kept| kept.packets > 0 || kept.told.is_some_and(|at| now < at + FORGOTTEN));
        let mut due: Vec<_> = self.0.iter_mut().filter(|(_, kept)| kept.is_due(now)).collect();
        due.sort_by_key(|(_, kept)| (kept.told.is_some(), kept.since));
        let may = due.into_iter().take_while(|(_, kept)| budget.take(kept.told.is_none(), now));
        may.filter_map(|(pod, kept)| {
            let extent = kept.extent(now, look);
            let told = mem::replace(kept, Kept::new(Some(now)));
            Some(Due { pod: pod.clone(), call: told.call?, extent })
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

    fn due(of: usize, call: u64, extent: &str) -> Due<u64> {
        Due { pod: pod(of), call, extent: extent.to_owned() }
    }

    /// Packets that are told of.
    fn packets(extent: &str) -> u64 {
        extent.split(' ').next().unwrap().parse().unwrap()
    }

    /// Takes so many calls of a pod, each of one packet.
    fn blocked(untold: &mut Untold<u64>, of: usize, calls: u64, now: Instant) {
        for call in 0..calls {
            untold.take(pod(of), call, call, 1, now);
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
            told.extend(untold.tell(&mut budget, now, LOOK).into_iter().map(|due| (now, due.pod, due.extent)));
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
        assert_eq!(told.iter().map(|(.., extent)| packets(extent)).sum::<u64>() + left, given);
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
                assert_eq!(told[0], due(new, 0, "1 packets seen in 10 s"));
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
        assert!(!untold.is_due(start + LOOK));
        assert_eq!(untold.tell(&mut budget, start + LOOK, LOOK), [], "not again in this minute");
        let now = start + MINUTE;
        let extent = "5 packets seen in 50 s, in 5 kinds of calls, of which this came last";
        assert!(untold.is_due(now));
        assert_eq!(untold.tell(&mut budget, now, LOOK), [due(1, 4, extent)]);
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
