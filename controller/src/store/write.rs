//! What one transaction may do.

use std::collections::BTreeMap;

use rusqlite::{Connection, Transaction, TransactionBehavior, named_params};
use serde::Serialize;

use super::{
    Condition, Document, Draft, Head, Reader, Retention, Revision, StoreError, documents,
    read::{HEAD, digest, head},
};

/// A transaction that is under way. What it did is on the disk when [`super::Store::write`] has returned, and not before.
#[derive(Debug)]
pub struct Write<'a> {
    /// It reads what this transaction has written.
    reader: &'a Reader,
    retention: Retention,
}

pub(super) fn write<T>(
    reader: &Reader,
    retention: Retention,
    change: impl FnOnce(&Write<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let sqlite = |doing| move |error| StoreError::sqlite(reader.path(), doing, &error);
    let begun = Transaction::new_unchecked(reader.connection(), TransactionBehavior::Immediate);
    let transaction = begun.map_err(sqlite("begin to write"))?;
    let write = Write { reader, retention };
    // Rolled back when it is dropped.
    let done = change(&write)?;
    let documents = reader.try_to("look for documents", has_documents)?;
    if documents {
        documents::set(reader.state())?;
    }
    transaction.commit().map_err(sqlite("write"))?;
    if !documents {
        documents::clear(reader.state());
    }
    Ok(done)
}

/// Whether some are in force, or may be in part.
fn has_documents(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM revisions WHERE condition IN ('staged', 'in force') AND documents <> '{}')";
    connection.query_row(sql, [], |row| row.get(0))
}

impl Write<'_> {
    /// As [`super::Store::stage`].
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn stage(&self, draft: &Draft) -> Result<Revision, StoreError> {
        let in_force = self.reader.in_force()?;
        let parent = in_force.as_ref().map(|revision| revision.head.number);
        let documents = match &draft.documents {
            Some(documents) => documents.clone(),
            None => in_force.map(|revision| revision.documents).unwrap_or_default(),
        };
        let latest = self.reader.latest()?;
        let number = match &latest {
            Some(latest) if self.says(latest, parent, draft, &documents)? => latest.number,
            Some(latest) => latest.number + 1,
            None => 1,
        };
        let head = Head {
            number,
            node: draft.node.clone(),
            parent,
            author: draft.author.clone(),
            origin: draft.origin,
            time: draft.time,
            reason: draft.reason.clone(),
            summary: draft.summary.clone(),
            condition: Condition::Staged,
            took_effect: false,
        };
        let revision = Revision { head, inputs: draft.inputs.clone(), documents };
        let texts = (self.json(&revision.inputs)?, self.json(&revision.documents)?);
        let (author, origin) = (self.json(&draft.author)?, self.json(&draft.origin)?);
        let summary = self.json(&draft.summary)?;
        self.to("stage a revision", |connection| {
            connection.execute(
                "UPDATE revisions SET condition = 'superseded' WHERE condition = 'staged' AND number <> ?1",
                [number],
            )?;
            connection.execute("DELETE FROM revisions WHERE number = ?1", [number])?;
            connection.execute(
                "INSERT INTO revisions VALUES (:number, :node, :parent, :author, :origin, :time, :reason, :summary, 'staged', '', 0, \
                 :inputs, :documents, :digest)",
                named_params! {
                    ":number": number,
                    ":node": draft.node,
                    ":parent": parent,
                    ":author": author,
                    ":origin": origin,
                    ":time": draft.time,
                    ":reason": draft.reason,
                    ":summary": summary,
                    ":inputs": texts.0,
                    ":documents": texts.1,
                    ":digest": digest(&texts.0, &texts.1),
                },
            )?;
            prune(connection, self.retention)
        })?;
        Ok(revision)
    }

    /// As [`super::Store::commit`].
    ///
    /// # Errors
    /// It is neither staged nor in force; the database cannot be written.
    pub fn commit(&self, number: u64) -> Result<Head, StoreError> {
        let found = self.staged(number)?;
        if found.condition == Condition::InForce {
            return Ok(found);
        }
        self.to("mark a revision as in force", |connection| {
            connection.execute("UPDATE revisions SET condition = 'superseded' WHERE condition = 'in force'", [])?;
            connection
                .execute("UPDATE revisions SET condition = 'in force', took_effect = 1 WHERE number = ?1", [number])?;
            prune(connection, self.retention)
        })?;
        Ok(Head { condition: Condition::InForce, took_effect: true, ..found })
    }

    /// As [`super::Store::refuse`].
    ///
    /// # Errors
    /// It is not staged; the database cannot be written.
    pub fn refuse(&self, number: u64, why: &str) -> Result<Head, StoreError> {
        let found = self.staged(number)?;
        if found.condition == Condition::InForce {
            return Err(StoreError::NotStaged { number, condition: found.condition.to_string() });
        }
        self.to("mark a revision as refused", |connection| {
            let sql = "UPDATE revisions SET condition = 'refused', why = ?2 WHERE number = ?1";
            connection.execute(sql, (number, why))
        })?;
        Ok(Head { condition: Condition::Refused { why: why.to_owned() }, ..found })
    }

    /// As [`super::Store::set`].
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn set<T: Serialize>(&self, key: &str, value: &T) -> Result<(), StoreError> {
        let value = self.json(value)?;
        self.to("set a setting", |connection| {
            connection.execute("INSERT OR REPLACE INTO settings VALUES (?1, ?2)", (key, value)).map(drop)
        })
    }

    /// As [`super::Store::unset`].
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn unset(&self, key: &str) -> Result<bool, StoreError> {
        self.to("remove a setting", |connection| connection.execute("DELETE FROM settings WHERE key = ?1", [key]))
            .map(|removed| removed > 0)
    }

    /// What the transaction sees.
    #[must_use]
    pub const fn reader(&self) -> &Reader {
        self.reader
    }

    /// A revision that is staged or in force.
    fn staged(&self, number: u64) -> Result<Head, StoreError> {
        let found = self.to("find a revision", |connection| {
            let sql = format!("SELECT {HEAD} FROM revisions WHERE number = ?1");
            connection.prepare(&sql)?.query_map([number], head)?.next().transpose()
        })?;
        match found {
            Some(found) if matches!(found.condition, Condition::Staged | Condition::InForce) => Ok(found),
            found => {
                let condition = found.map_or("not there".to_owned(), |found| found.condition.to_string());
                Err(StoreError::NotStaged { number, condition })
            }
        }
    }

    /// Whether a revision that never took effect is the same but for its time.
    fn says(
        &self,
        head: &Head,
        parent: Option<u64>,
        draft: &Draft,
        documents: &BTreeMap<String, Document>,
    ) -> Result<bool, StoreError> {
        let tried = matches!(head.condition, Condition::Staged | Condition::Refused { .. });
        let same = tried
            && head.parent == parent
            && (&head.node, &head.author, head.origin, &head.reason)
                == (&draft.node, &draft.author, draft.origin, &draft.reason);
        if !same {
            return Ok(false);
        }
        let digest = digest(&self.json(&draft.inputs)?, &self.json(documents)?);
        let sql = "SELECT digest = ?2 FROM revisions WHERE number = ?1";
        self.to("compare revisions", |connection| connection.query_row(sql, (head.number, digest), |row| row.get(0)))
    }

    fn to<T>(
        &self,
        doing: &'static str,
        act: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.reader.try_to(doing, act)
    }

    fn json(&self, value: &impl Serialize) -> Result<String, StoreError> {
        serde_json::to_string(value).map_err(|error| StoreError::Form {
            path: self.reader.path().to_owned(),
            what: "what shall be written".to_owned(),
            why: error.to_string(),
        })
    }
}

/// Removes what [`Retention`] does not keep.
fn prune(connection: &Connection, retention: Retention) -> rusqlite::Result<()> {
    let Retention { revisions, bytes, predecessors } = retention;
    // The one in force has taken effect as well.
    let effective = predecessors.saturating_add(1);
    let [revisions, bytes, effective] =
        [revisions, bytes, effective].map(|limit| i64::try_from(limit).unwrap_or(i64::MAX));
    connection.execute(
        "DELETE FROM revisions WHERE number IN (
            SELECT number FROM (
                SELECT number, condition, row_number() OVER newest AS nth,
                    sum(octet_length(inputs) + octet_length(documents)) OVER newest AS bytes
                FROM revisions WINDOW newest AS (ORDER BY number DESC)
            )
            WHERE (nth > ?1 OR bytes > ?2) AND condition NOT IN ('staged', 'in force')
                AND number NOT IN (SELECT number FROM revisions WHERE took_effect ORDER BY number DESC LIMIT ?3)
        )",
        [revisions, bytes, effective],
    )?;
    Ok(())
}
