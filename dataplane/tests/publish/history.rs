//! What the tables held at every moment of a publish.

use std::collections::{BTreeSet, HashMap};

use bulkhead_dataplane::memory::{Event, Snapshot};

use crate::judge::Look;

/// Does to a copy of the tables what happened to them.
pub(crate) fn apply(event: &Event, tables: &mut Snapshot) {
    if let Event::Write { table, key, value } = event {
        let entries = tables.entry(table).or_default();
        match value {
            Some(value) => drop(entries.insert(key.clone(), value.clone())),
            None => drop(entries.remove(key)),
        }
    }
}

/// A value, or none, and since when.
type Version = (usize, Option<Vec<u8>>);

/// Every table at every moment of a publish.
pub(crate) struct History {
    /// By table and key: each value and since when.
    entries: HashMap<(&'static str, Vec<u8>), Vec<Version>>,
    by_table: HashMap<&'static str, BTreeSet<Vec<u8>>>,
    /// Moments at which a grace period ended, and the last moment.
    pub(crate) ends: Vec<usize>,
}

impl History {
    pub(crate) fn new(start: &Snapshot, journal: Vec<Event>) -> Self {
        let mut history = Self { entries: HashMap::new(), by_table: HashMap::new(), ends: Vec::new() };
        let mut record = |at: usize, table: &'static str, key: Vec<u8>, value: Option<Vec<u8>>| {
            history.by_table.entry(table).or_default().insert(key.clone());
            history.entries.entry((table, key)).or_default().push((at, value));
        };
        for (table, entries) in start {
            entries.iter().for_each(|(key, value)| record(0, table, key.clone(), Some(value.clone())));
        }
        let mut ends = Vec::new();
        let mut now = 0;
        for event in journal {
            match event {
                Event::Write { table, key, value } => {
                    now += 1;
                    record(now, table, key, value);
                }
                Event::GracePeriod => ends.push(now),
            }
        }
        ends.push(now);
        history.ends = ends;
        history
    }

    pub(crate) fn at(&self, moment: usize, table: &'static str, key: &[u8]) -> Option<Vec<u8>> {
        let versions = self.entries.get(&(table, key.to_vec()))?;
        versions.iter().rev().find(|(at, _)| *at <= moment)?.1.clone()
    }

    pub(crate) fn all(&self, moment: usize, table: &'static str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let keys = self.by_table.get(table).into_iter().flatten();
        keys.filter_map(|key| Some((key.clone(), self.at(moment, table, key)?))).collect()
    }
}

/// All tables at one moment.
pub(crate) struct Moment<'a>(pub(crate) &'a History, pub(crate) usize);

impl Look for Moment<'_> {
    fn bytes(&mut self, table: &'static str, key: &[u8]) -> Option<Vec<u8>> {
        self.0.at(self.1, table, key)
    }

    fn all(&mut self, table: &'static str) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.0.all(self.1, table)
    }
}
