//! The way out on the worst day: a node drops nothing that its programs judge, for a while, whether an agent runs or not.
//!
//! One word of `NODE` says until when, in jiffies, and every program compares it with the clock: a bypass ends though nobody is there to end it. It
//! needs the pinned table and nothing else. No publisher writes that word, so that one may be at work meanwhile; it goes when everything is detached.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bulkhead_ebpf::abi::node;

use crate::{
    clock::Clock,
    load::Maps,
    node::NodeError,
    pins::Pins,
    store::{Node, Store},
    sys::{Doing as _, Words},
};

/// Shortest bypass.
pub const SHORTEST: Duration = Duration::from_secs(1);
/// Longest bypass: whoever needs more means `bulkhead detach --all`.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Bypasses enforcement from now on for this time, in place of what is left of an earlier bypass. Says when it ends, in nanoseconds of Unix time; time
/// in which the machine sleeps does not count.
///
/// # Errors
/// A time that is out of bounds, nothing that is pinned, or what the kernel refused: then nothing has changed.
pub fn bypass(pins: &Path, time: Duration) -> Result<u64, NodeError> {
    if !(SHORTEST..=LONGEST).contains(&time) {
        return Err(format!("it lasts at least {SHORTEST:?} and at most {} h", LONGEST.as_secs() / 3600))
            .doing(|| format!("bypass enforcement for {time:?}"));
    }
    let words = Bypass::open(pins)?;
    let moment = Moment::now()?;
    let jiffies = (time.as_nanos() * u128::from(moment.hz)).div_ceil(1_000_000_000);
    let until = moment.jiffies + u64::try_from(jiffies).unwrap_or(u64::MAX);
    words.set(until)?;
    Ok(moment.unix(until))
}

/// Ends a bypass at once. Says when it would have ended, as [`bypass`] does; `None` where there was none.
///
/// # Errors
/// Nothing is pinned, or what the kernel refused.
pub fn end_bypass(pins: &Path) -> Result<Option<u64>, NodeError> {
    let words = Bypass::open(pins)?;
    let until = words.get()?;
    words.set(0)?;
    let moment = Moment::now()?;
    Ok((moment.jiffies < until).then(|| moment.unix(until)))
}

/// Until when enforcement is bypassed, in nanoseconds of Unix time.
///
/// # Errors
/// What the kernel refused.
pub(crate) fn bypassed_until<S: Store>(store: &S) -> Result<Option<u64>, NodeError> {
    let until = store.get::<Node>(&node::BYPASS)?.unwrap_or(0);
    if until == 0 {
        return Ok(None);
    }
    let (jiffies, hz) = store.clock()?;
    let moment = Moment { unix: unix_now(), jiffies, hz: hz.max(1) };
    Ok((moment.jiffies < until).then(|| moment.unix(until)))
}

/// The pinned words of the node.
struct Bypass(Words);

impl Bypass {
    fn open(pins: &Path) -> Result<Self, NodeError> {
        let map = Maps::open_one::<Node>(&Pins::new(pins))?;
        Words::map(&map).map(Self).doing(|| "map NODE into memory")
    }

    fn get(&self) -> Result<u64, NodeError> {
        Ok(self.word()?.load(Ordering::Acquire))
    }

    fn set(&self, until: u64) -> Result<(), NodeError> {
        self.word()?.store(until, Ordering::Release);
        Ok(())
    }

    fn word(&self) -> Result<&AtomicU64, NodeError> {
        self.0.get(node::BYPASS as usize).ok_or("the table has no such word").doing(|| "open the bypass in NODE")
    }
}

/// The same moment by both clocks.
struct Moment {
    unix: u64,
    jiffies: u64,
    hz: u64,
}

impl Moment {
    fn now() -> Result<Self, NodeError> {
        let clock = Clock::new().doing(|| "load the program that reads jiffies")?;
        let jiffies = clock.jiffies().doing(|| "read jiffies")?;
        Ok(Self { unix: unix_now(), jiffies, hz: clock.hz() })
    }

    /// When it is so many jiffies, which it is not yet.
    fn unix(&self, jiffies: u64) -> u64 {
        let left = u128::from(jiffies.saturating_sub(self.jiffies)) * 1_000_000_000 / u128::from(self.hz);
        self.unix.saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;

    #[test]
    fn the_end_is_told_by_the_wall_clock_until_it_has_come() {
        let mut store = MemoryStore::default();
        assert_eq!(bypassed_until(&store).unwrap(), None);
        let (jiffies, hz) = store.clock().unwrap();
        store.put::<Node>(&[(node::BYPASS, jiffies + 60 * hz)]).unwrap();
        let left = bypassed_until(&store).unwrap().unwrap() - unix_now();
        assert!((30_000_000_000..=60_010_000_000).contains(&left), "{left}");
        store.put::<Node>(&[(node::BYPASS, jiffies)]).unwrap();
        assert_eq!(bypassed_until(&store).unwrap(), None, "it has ended");
        store.put::<Node>(&[(node::BYPASS, u64::MAX)]).unwrap();
        assert_eq!(bypassed_until(&store).unwrap(), Some(u64::MAX), "whoever wrote that");
    }

    #[test]
    fn times_out_of_bounds_are_refused_by_name() {
        for time in
            [Duration::ZERO, SHORTEST - Duration::from_nanos(1), LONGEST + Duration::from_nanos(1), Duration::MAX]
        {
            let error = bypass(Path::new("/nonexistent"), time).unwrap_err().to_string();
            assert!(error.contains(&format!("{time:?}")) && error.contains("at most 24 h"), "{error}");
        }
        for time in [SHORTEST, LONGEST] {
            let error = bypass(Path::new("/nonexistent"), time).unwrap_err().to_string();
            assert!(error.contains("nothing is pinned"), "{error}");
        }
    }
}
