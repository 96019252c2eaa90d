//! Changes from elsewhere than files: see [`crate::control`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bulkhead_dataplane::{
    cni::protocol::{Answer, Request},
    desired::Desired,
    node::{MarkConflicts, Node, NodeError, Rehearsal, Status},
};

use super::{Agent, BESIDE, BESIDE_STAGED, Beside, Prepared, draft, guarding, has_room};
use crate::{
    accounts::Accounts,
    audit::{Event, Outcome},
    bypass::Record,
    control::{Basis, Control, Fingerprint, Known, Pending, Put, PutError, Report, Standing},
    diagnostic::{Diagnostic, Diagnostics},
    input::{Files, Inputs},
    metrics::Health,
    peers::{Made, Unmade},
    plan,
    room::{no_room, stays},
    show::time,
    store::{Author, Draft, Head, Origin, Revision, StoreError, now},
};

/// After this long it is tried again to bring back what was not confirmed.
const AGAIN: Duration = Duration::from_secs(10);

impl<N: Node> Agent<N> {
    /// Whether what is in force waits for its confirmation no longer.
    pub(super) fn has_waited_in_vain(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.until <= now())
    }

    /// Brings back what was before the revision that nobody confirmed.
    pub(super) fn restore(&mut self) {
        let Some(pending) = self.pending.clone() else { return };
        let put = Put {
            overlay: pending.back.clone(),
            author: Author { uid: None, name: "bulkhead".to_owned() },
            origin: Origin::Restore,
            reason: format!("revision {} was not confirmed in time", pending.revision),
            confirm_within: None,
            basis: None,
        };
        match self.put(put) {
            Ok(head) => {
                tracing::warn!(revision = head.number, "{}: what was before is back", head.reason);
            }
            Err(error) => {
                tracing::error!("revision {} was not confirmed, but stays in force: {error}", pending.revision);
                let again = u64::try_from(AGAIN.as_nanos()).unwrap_or(u64::MAX);
                self.pending = Some(Pending { until: now().saturating_add(again), ..pending });
            }
        }
    }

    fn basis_of(&self, files: Files) -> Basis {
        Basis {
            fingerprint: Fingerprint::new(
                self.revision.head.number,
                &self.overlay.over(files.clone()),
                &self.discovered,
            ),
            revision: Arc::new(self.revision.clone()),
            model: Arc::clone(self.compiling.model()),
            files,
            overlay: self.overlay.clone(),
            node: self.settings.node.clone(),
            attachments: self.attachments.clone(),
            discovered: self.discovered.clone(),
            manner: self.settings.manner,
        }
    }

    /// Writes a change and what holds beside it, before it takes effect.
    fn stage_put(
        &mut self,
        put: &Put,
        inputs: &Inputs,
        desired: &Desired,
    ) -> Result<(Revision, Option<Pending>), StoreError> {
        let draft = Draft {
            author: put.author.clone(),
            origin: put.origin,
            reason: put.reason.clone(),
            documents: Some(put.overlay.documents.clone()),
            ..draft(&self.settings, inputs.clone(), desired)
        };
        self.mark()?;
        let back = &self.overlay;
        let staged = self.keeper.lock().store.write(|write| {
            let revision = write.stage(&draft)?;
            let pending = put.confirm_within.map(|within| Pending {
                revision: revision.head.number,
                until: now().saturating_add(u64::try_from(within.as_nanos()).unwrap_or(u64::MAX)),
                back: back.clone(),
            });
            let beside = Beside { revision: revision.head.number, held: put.overlay.held.clone(), pending };
            write.set(BESIDE_STAGED, &beside)?;
            Ok((revision, beside))
        });
        let (revision, beside) = staged?;
        self.staged = Some(revision.head.number);
        Ok((revision, beside.pending))
    }

    fn put_in_force(&mut self, put: Put) -> Result<Head, PutError> {
        if let Some(pending) = self.pending.as_ref().filter(|_| put.origin != Origin::Restore) {
            return Err(PutError::Pending { revision: pending.revision, until: time(pending.until) });
        }
        let basis = self.basis();
        if let Some(planned) = &put.basis {
            let changes = planned.changes(&basis.fingerprint, &self.revision.head);
            if !changes.is_empty() {
                return Err(PutError::Changed(changes));
            }
        }
        self.compiled = now();
        self.compiling.begin();
        // Who does not fit already, and policies that are held back, are not its business.
        let (misfits, rehearsed) = (self.compiling.misfits(), basis.files.is_live() && !self.found.0.is_empty());
        let prepared = plan::check(&basis, &put.overlay, |model| {
            self.compiling.together(|compiling| {
                compiling.follow(Arc::new(model), &self.discovered, self.compiled, misfits.clone())?;
                match rehearsed {
                    true => has_room(&mut self.node, &compiling.desired(), compiling.model(), Some(&self.desired)),
                    false => Ok(()),
                }
            })
        });
        let done =
            prepared.map_err(PutError::Invalid).and_then(|prepared| self.take_effect(put, &basis.files, prepared));
        match &done {
            Ok(_) => self.compiling.keep(),
            Err(_) => self.compiling.go_back(),
        }
        // The kernel may have refused in the middle: what was in force takes back what has changed.
        if matches!(done, Err(PutError::Node(_))) && self.stale {
            self.renew();
        }
        done
    }

    fn take_effect(&mut self, put: Put, files: &Files, prepared: Prepared<()>) -> Result<Head, PutError> {
        let Prepared { inputs, listed, built: (), refused } = prepared;
        let desired = self.compiling.desired();
        let (revision, pending) = self.stage_put(&put, &inputs, &desired)?;
        if let Err(error) = self.enforce(desired) {
            let stays = stays(Some(self.revision.head.number));
            let found = no_room(&error, &self.compiling.desired(), self.compiling.model(), &stays);
            let error = found.map_or(PutError::Node(error), PutError::Invalid);
            let closed = self.drop_staged(&error.to_string());
            self.stored(closed);
            return Err(error);
        }
        (self.revision, self.pending, self.staged, self.unwritten_inputs) = (revision, pending, None, None);
        self.seen = Some(put.overlay.over(files.clone()));
        self.overlay = put.overlay;
        let marked = self.mark();
        self.stored(marked);
        self.refuse_some(&refused);
        (self.listed, self.peers) = (listed, Made::default());
        let head = &self.revision.head;
        tracing::info!(revision = head.number, author = head.author.name, reason = head.reason, "in force");
        Ok(head.clone())
    }

    fn confirmed(&mut self, revision: u64) -> Result<Head, PutError> {
        if self.pending.as_ref().is_none_or(|pending| pending.revision != revision) {
            return Err(PutError::NotPending(revision));
        }
        self.end_writing();
        self.mark()?;
        let beside = Beside { pending: None, ..self.beside() };
        self.keeper.lock().store.set(BESIDE, &beside)?;
        self.pending = None;
        Ok(self.revision.head.clone())
    }

    fn record(&mut self, actor: Author, action: String, before: u64, outcome: Outcome, detail: &str) {
        let event = Event {
            actor,
            action,
            revision_before: Some(before),
            ..super::change(&self.settings.node, &self.revision.head, outcome, detail)
        };
        self.keeper.record(&event);
    }
}

impl<N: Node> Control for Agent<N> {
    fn basis(&mut self) -> Basis {
        self.write_down();
        self.basis_of(self.settings.source.read())
    }

    fn rehearse(&mut self, desired: &Desired) -> Result<Rehearsal, NodeError> {
        guarding(desired, |possible, _| self.node.rehearse(possible)).map(|(rehearsal, _)| rehearsal)
    }

    fn put(&mut self, put: Put) -> Result<Head, PutError> {
        let (before, actor, origin) = (self.revision.head.number, put.author.clone(), put.origin);
        let done = self.put_in_force(put);
        let (outcome, detail) = match &done {
            Ok(head) => (Outcome::Ok, head.reason.clone()),
            Err(error) => (error.outcome(), error.to_string()),
        };
        let action = match origin {
            Origin::Files | Origin::Api => "revision.apply".to_owned(),
            Origin::Rollback { of } => format!("revision.rollback to {of}"),
            Origin::Restore => "revision.restore".to_owned(),
        };
        self.record(actor, action, before, outcome, &detail);
        done
    }

    fn confirm(&mut self, revision: u64, author: &Author) -> Result<Head, PutError> {
        let done = self.confirmed(revision);
        let (outcome, detail) = match &done {
            Ok(_) => (Outcome::Ok, String::new()),
            Err(error) => (error.outcome(), error.to_string()),
        };
        self.record(
            author.clone(),
            format!("revision.confirm {revision}"),
            self.revision.head.number,
            outcome,
            &detail,
        );
        done
    }

    fn forbidden(&mut self, author: &Author, what: &str) {
        self.end_writing();
        self.record(author.clone(), what.to_owned(), self.revision.head.number, Outcome::Refused, "it may not");
    }

    fn attach(&mut self, requests: &[Request]) -> Vec<Answer> {
        Agent::attach(self, requests)
    }

    fn make_ready(&mut self) {
        Agent::make_ready(self);
    }

    fn report(&mut self, status: Status, lost: u64) -> Report {
        self.write_down();
        let bypass = status.bypassed_until.and_then(|until| Record::of(until, &self.settings.state));
        Report {
            head: self.revision.head.clone(),
            started: self.started,
            status,
            marks: self.marks.clone(),
            unguarded: Agent::unguarded(self).to_vec(),
            refused: self.refused.clone(),
            failed: self.failed.clone(),
            unstored: self.unstored.clone(),
            behind: self.behind.clone(),
            pending: self.pending.clone(),
            held: self.overlay.held.keys().cloned().collect(),
            lost,
            bypass,
            drift: self.drift.clone(),
            found: self.adoption.found.clone(),
            audit: self.keeper.losses().clone(),
        }
    }

    fn standing(&mut self, texts: &BTreeMap<String, Arc<str>>) -> Standing {
        let in_force = self.unwritten_inputs.as_ref().unwrap_or(&self.revision.inputs);
        let Inputs { policies, isolating, .. } = in_force;
        let differs = |name: &str, text: &str| {
            isolating.contains(name) || policies.get(name).is_none_or(|in_force| in_force != text)
        };
        // What it says holds, but not for those that are shut.
        let misfits = self.misfits.1.0.iter().filter_map(|found| Some(found.place.as_ref()?.file()));
        let misfits: BTreeSet<_> = misfits.collect();
        let differs = |name: &str, text: &str| misfits.contains(name) || differs(name, text);
        let differ = texts.iter().filter(|(name, text)| differs(name, text)).map(|(name, _)| name.clone()).collect();
        // What a cluster says is in force, whether it can be written down or not.
        let unstored = (!self.listed.live).then_some(&self.unstored);
        let failed = [&self.failed].into_iter().chain(unstored).find(|why| !why.is_empty());
        let misfits = self.misfits.1.0.iter().cloned().map(Diagnostic::as_local);
        Standing {
            differ,
            found: Diagnostics(self.found.0.iter().cloned().chain(misfits).collect()),
            refused: if self.found.0.is_empty() && !self.uses_all() { self.refused.clone() } else { String::new() },
            failed: failed.cloned().unwrap_or_default(),
            observe: self.settings.manner.observe || self.bypass.is_on(),
        }
    }

    fn known(&mut self) -> Known {
        Known { model: Arc::clone(self.compiling.model()), node: self.settings.node.clone() }
    }

    fn accounts(&mut self) -> Accounts {
        self.accounts.clone()
    }

    fn peers(&mut self) -> Unmade {
        Agent::peers(self)
    }

    fn looked(&mut self, status: Result<Status, NodeError>) {
        Agent::looked(self, status);
    }

    fn take_marks(&mut self, found: Result<MarkConflicts, NodeError>) {
        Agent::take_marks(self, found);
    }

    fn health(&mut self) -> Health {
        Agent::health(self)
    }
}
