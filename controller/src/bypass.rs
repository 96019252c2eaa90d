//! What is left of a bypass beside its word in the kernel: who asked for it and why, and what people are told of it.
//!
//! Nothing here is needed for a bypass to work: on the worst day the disk may be full and the state directory gone.

use std::path::Path;

use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    audit::{AuditError, Event, Log, Outcome},
    show::time,
    store::{
        Author, FileError,
        file::{load, store},
        now,
    },
};

/// Name of the file in the state directory, which holds the latest record.
pub const FILE: &str = "bypass.json";
/// Records that are kept for the audit log at most.
const UNLOGGED: usize = 16;
/// What two readings of one deadline may differ by, in nanoseconds: the wall clock is corrected meanwhile, jiffies are not.
const SLACK: u64 = 60_000_000_000;

/// Somebody has bypassed enforcement, or has ended that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = BypassRecord)]
pub struct Record {
    /// Whose process it was.
    pub uid: u32,
    /// Name of that user; empty where none is known.
    pub user: String,
    /// When, nanoseconds of Unix time.
    pub at: u64,
    /// Until when it is bypassed, nanoseconds of Unix time; `None` when it was ended.
    pub until: Option<u64>,
    /// Why, in their words.
    pub reason: String,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    latest: Record,
    /// Those that came while an agent had the audit log: the next look of an agent takes them there.
    #[serde(default)]
    unlogged: Vec<Record>,
}

/// Records that an agent is to take to the audit log, unless it has; the latest last.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn unlogged(state: &Path) -> Result<Vec<Record>, FileError> {
    Ok(load::<Kept>(state, FILE)?.map(|kept| kept.unlogged).unwrap_or_default())
}

impl Record {
    /// What this process's user does now.
    #[must_use]
    pub fn new(until: Option<u64>, reason: &str) -> Self {
        let uid = Uid::current();
        let user = User::from_uid(uid).ok().flatten().map(|user| user.name).unwrap_or_default();
        Self { uid: uid.as_raw(), user, at: now(), until, reason: reason.to_owned() }
    }

    fn who(&self) -> String {
        match self.user.as_str() {
            "" => format!("uid {}", self.uid),
            user => format!("{user} (uid {})", self.uid),
        }
    }

    /// As it stands in the audit log.
    pub(crate) fn event(&self) -> Event {
        let (action, detail) = match self.until {
            Some(until) => ("enforcement.bypass", format!("until {}: {}", time(until), self.reason)),
            None => ("enforcement.bypass_end", self.reason.clone()),
        };
        Event {
            actor: Author { uid: Some(self.uid), name: self.user.clone() },
            action: action.to_owned(),
            target: "this node".to_owned(),
            revision_before: None,
            revision_after: None,
            outcome: Outcome::Ok,
            detail,
        }
    }

    /// The record of the bypass that ends then, unless it could not be written.
    #[must_use]
    pub fn of(until: u64, state: &Path) -> Option<Self> {
        let record = load::<Self>(state, FILE).ok().flatten();
        record.filter(|record| record.until.is_some_and(|recorded| recorded.abs_diff(until) <= SLACK))
    }
}

/// Why what was done is not recorded in full.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Nor will `status` say by whom and why.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not in the audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// Says what was done, and keeps it in the state directory and its audit log.
///
/// # Errors
/// It cannot be kept.
pub fn record(record: &Record, state: &Path) -> Result<(), RecordError> {
    let (who, reason) = (record.who(), &record.reason);
    match record.until {
        Some(until) => tracing::warn!(who, reason, until = time(until), "enforcement is bypassed"),
        None => tracing::warn!(who, reason, "the bypass is ended"),
    }
    let logged = Log::new(state).record(&record.event());
    let mut unlogged = unlogged(state).unwrap_or_else(|error| {
        tracing::warn!("who bypassed enforcement before may be missing from the audit log: {error}");
        Vec::new()
    });
    // A living agent writes the log, and takes there what it finds in the file.
    if matches!(logged, Err(AuditError::InUse { .. })) {
        unlogged.push(record.clone());
        unlogged.drain(..unlogged.len().saturating_sub(UNLOGGED));
    }
    // Whatever becomes of one, the other is tried.
    let kept = store(state, FILE, &Kept { latest: record.clone(), unlogged });
    match logged {
        Ok(_) | Err(AuditError::InUse { .. }) => Ok(kept?),
        Err(error) => Err(error.into()),
    }
}

/// Keeps in the audit log of a state directory that everything was detached.
///
/// # Errors
/// It cannot be kept.
pub fn record_detach(pins: &Path, state: &Path) -> Result<(), AuditError> {
    let Record { uid, user, .. } = Record::new(None, "");
    let event = Event {
        actor: Author { uid: Some(uid), name: user },
        action: "enforcement.detach".to_owned(),
        target: pins.display().to_string(),
        revision_before: None,
        revision_after: None,
        outcome: Outcome::Ok,
        detail: "programs, input rule and pins are gone: nothing is guarded".to_owned(),
    };
    Log::new(state).record(&event).map(drop)
}

/// One line for whoever looks at a node that is bypassed.
#[must_use]
pub fn banner(until: u64, record: Option<&Record>) -> String {
    let by = match record {
        Some(record) => format!("by {}: {}", record.who(), record.reason),
        None => "by whom and why was not recorded".to_owned(),
    };
    format!("BYPASSED until {}, {by}", time(until))
}

/// Notices that a bypass begins, changes and ends.
#[derive(Debug, Default)]
pub(crate) struct Watch(Option<u64>);

impl Watch {
    /// Whether enforcement is bypassed, as it was seen last.
    pub(crate) const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What is new, when this is how it is now.
    pub(crate) fn see(&mut self, until: Option<u64>, state: &Path) -> Option<String> {
        match (std::mem::replace(&mut self.0, until), until) {
            (Some(_), None) => Some("the bypass is over: this node enforces again".to_owned()),
            (Some(before), Some(until)) if before.abs_diff(until) <= SLACK => {
                // Many small corrections are not a new bypass.
                self.0 = Some(until);
                None
            }
            (_, Some(until)) => {
                Some(format!("{}: what is forbidden passes", banner(until, Record::of(until, state).as_ref())))
            }
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const AT: u64 = 1_700_000_000_000_000_000;
    const MINUTE: u64 = 60_000_000_000;

    fn someone(until: Option<u64>) -> Record {
        Record { uid: 1000, user: "ada".to_owned(), at: AT, until, reason: "db migration is stuck".to_owned() }
    }

    #[test]
    fn a_bypass_is_told_with_who_and_why() {
        let state = tempfile::tempdir().unwrap();
        let told = |until| banner(until, Record::of(until, state.path()).as_ref());
        assert_eq!(told(AT), "BYPASSED until 2023-11-14T22:13:20.000Z, by whom and why was not recorded");
        record(&someone(Some(AT)), state.path()).unwrap();
        assert_eq!(told(AT + 5), "BYPASSED until 2023-11-14T22:13:20.000Z, by ada (uid 1000): db migration is stuck");
        // It is about another bypass.
        assert!(told(AT + 2 * MINUTE).ends_with("was not recorded"));
        record(&someone(None), state.path()).unwrap();
        assert!(told(AT).ends_with("was not recorded"));
        fs::write(state.path().join(FILE), "{").unwrap();
        assert!(told(AT).ends_with("was not recorded"));
        let nobody = Record { user: String::new(), ..someone(Some(AT)) };
        assert!(banner(AT, Some(&nobody)).contains("by uid 1000: "));
        assert!(record(&nobody, &state.path().join("missing")).unwrap_err().to_string().contains("missing"));
    }

    #[test]
    fn what_others_do_while_an_agent_has_the_log_is_kept_for_it() {
        let state = tempfile::tempdir().unwrap();
        record(&someone(Some(AT)), state.path()).unwrap();
        assert!(unlogged(state.path()).unwrap().is_empty(), "it is in the log");
        let mut agents = Log::new(state.path());
        agents.record(&someone(None).event()).unwrap();
        let all: Vec<_> = (1..20).map(|step| Record { at: AT + step, ..someone(None) }).collect();
        all.iter().for_each(|one| record(one, state.path()).unwrap());
        assert_eq!(unlogged(state.path()).unwrap(), all[all.len() - UNLOGGED..]);
        drop(agents);
        record(&someone(Some(AT)), state.path()).unwrap();
        assert_eq!(unlogged(state.path()).unwrap().len(), UNLOGGED, "the next agent takes them to the log");
        assert!(Record::of(AT, state.path()).is_some());
        fs::write(state.path().join(FILE), "{").unwrap();
        assert!(unlogged(state.path()).is_err(), "that nothing is known is no list of nobody");
        record(&someone(None), state.path()).unwrap();
        assert!(unlogged(state.path()).unwrap().is_empty());
    }

    #[test]
    fn beginning_and_end_are_news_and_the_drift_of_clocks_is_not() {
        let state = tempfile::tempdir().unwrap();
        let mut watch = Watch::default();
        let mut news = |until| watch.see(until, state.path());
        assert_eq!(news(None), None);
        assert!(news(Some(AT)).is_some_and(|news| news.starts_with("BYPASSED until 2023-11-14T22:13:20.000Z, ")));
        assert_eq!((1..9).find_map(|step| news(Some(AT + step * MINUTE / 2))), None);
        assert!(news(Some(AT + 60 * MINUTE)).is_some_and(|news| news.contains("23:13:20")), "longer");
        assert!(news(Some(AT)).is_some(), "shorter");
        assert!(news(None).is_some_and(|news| news.contains("enforces again")));
        assert_eq!(news(None), None);
    }
}
