//! What Guards mean among services, namespaces and workloads.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_ebpf::abi::{Action, Direction};

use super::{Guard, Kind, Rule, Subjects, Whom};
use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place, suggest},
    intent::Entity,
    labels::{Labels, Requirement},
    model::{Model, Peer, ServiceName, Workload},
    ports::Ports,
    workloads::WorkloadName,
};

impl Subjects {
    /// Whether a workload fulfils all conditions.
    #[must_use]
    pub fn hold(&self, model: &Model, name: &WorkloadName, workload: &Workload) -> bool {
        self.namespaces.matches(&model.namespace(&name.namespace))
            && self.workloads.matches(&workload.labels)
            && (self.services.is_empty()
                || self.services.iter().any(|(service, _)| model.is_member(service, name, workload)))
    }
}

impl Guard {
    /// The other side of one of its rules for a workload of a namespace; `None` for nobody.
    #[must_use]
    pub fn peer(&self, rule: &Rule, model: &Model, namespace: &str) -> Option<Peer> {
        let own = || {
            let (label, _) = self.compare.as_ref()?;
            Some((label.clone(), model.namespace(namespace).get(label)?.to_owned()))
        };
        match &rule.peer {
            Whom::Is(peer) => Some(peer.clone()),
            Whom::Same => own().map(|(label, value)| Peer::Namespaces { label, value, other: false }),
            // What lacks the label is other to everyone, and everyone to it.
            Whom::Other => {
                Some(own().map_or(Peer::Any, |(label, value)| Peer::Namespaces { label, value, other: true }))
            }
        }
    }

    /// Whether its `pass` leaves all of its tier, as Kubernetes says, and not only this document.
    #[must_use]
    pub fn passes_all(&self) -> bool {
        self.kind != Kind::Guard
    }

    /// Its rules of a direction that hold at a time.
    pub fn rules(&self, direction: Direction, now: u64) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| rule.direction == direction && rule.holds(now))
    }
}

/// Puts Guards into the model in the order in which they are judged. Which of several of one priority comes first is an error where people write nothing but
/// Guards in files; Kubernetes leaves it open, and in a cluster it must not depend on which a node heard of first: there it is that of their kinds and names.
pub(crate) fn resolve<'a>(
    model: &mut Model,
    guards: impl Iterator<Item = &'a Guard>,
    live: bool,
    found: &mut Diagnostics,
) {
    let mut names: BTreeMap<(Kind, &str), &Guard> = BTreeMap::new();
    for guard in guards {
        if let Some(first) = names.get(&(guard.kind, guard.name.as_str())) {
            let kind = guard.kind.name();
            let error = Diagnostic::error(&guard.place, format!("{kind} `{}` is written twice", guard.name));
            found.push(error.note(&first.place, "first here").help("give it another name"));
        } else {
            names.insert((guard.kind, &guard.name), guard);
        }
    }
    let mut guards: Vec<_> = names.into_values().cloned().collect();
    guards.sort_by_key(|guard| (guard.tier, guard.priority));
    model.guards = guards;
    let mut warnings = Diagnostics::default();
    for (first, second) in model.guards.iter().zip(model.guards.iter().skip(1)) {
        if (first.tier, first.priority) == (second.tier, second.priority) {
            match !live && [first, second].iter().all(|guard| guard.kind == Kind::Guard) {
                true => found.push(tie(first, second)),
                false => warnings.push(tie(first, second).as_warning()),
            }
        }
    }
    for (at, guard) in model.guards.iter().enumerate() {
        Check { model, guard, found, warnings: &mut warnings, live }.guard(&model.guards[..at]);
    }
    model.warnings.0.append(&mut warnings.0);
}

/// What is said of two of one priority.
fn tie(first: &Guard, second: &Guard) -> Diagnostic {
    let message = if first.kind == second.kind {
        format!("{} `{}` and `{}` have priority {}", first.kind.plural(), first.name, second.name, second.priority)
    } else {
        let (first_kind, second_kind) = (first.kind.name(), second.kind.name());
        format!("{first_kind} `{}` and {second_kind} `{}` have priority {}", first.name, second.name, second.priority)
    };
    let error = Diagnostic::error(&second.priority_place, message);
    error.note(&first.priority_place, "first here").help("say which is judged first: the lower one")
}

/// Looks at one Guard.
struct Check<'a> {
    model: &'a Model,
    guard: &'a Guard,
    found: &'a mut Diagnostics,
    warnings: &'a mut Diagnostics,
    /// The cluster's objects come and go by themselves.
    live: bool,
}

impl Check<'_> {
    fn guard(&mut self, before: &[Guard]) {
        self.subjects();
        if let Some((label, place)) = &self.guard.compare
            && !self.model.namespaces.values().any(|labels| labels.contains(label))
        {
            let error =
                Diagnostic::error(place, format!("no namespace has the label `{label}`: everybody would be other"));
            let error = error.help(format!("{} ({NAMESPACES})", suggest(label, self.labels())));
            match self.live {
                // The last namespace that had it may lose it, or the first may get it: nodes must not differ by what they heard of first.
                true => self.warnings.push(error.as_warning()),
                false => self.found.push(error),
            }
        }
        for rule in &self.guard.rules {
            if let Whom::Is(Peer::Service(service)) = &rule.peer {
                self.service(service, &rule.place, "the rule matches nobody");
            }
            for ports in &rule.ports {
                // What Kubernetes names may come to be.
                if let Ports::Named { name, .. } = ports
                    && self.guard.kind == Kind::Guard
                {
                    self.named_port(rule, name);
                }
            }
        }
        if self.guard.kind == Kind::Guard {
            self.health_checks(before);
        }
    }

    fn subjects(&mut self) {
        let Subjects { place, namespaces, services, .. } = &self.guard.subjects;
        for (service, place) in services {
            self.service(service, place, "the Guard does not concern it");
        }
        let concerns =
            |(name, workload): (&WorkloadName, &Workload)| self.guard.subjects.hold(self.model, name, workload);
        let Some(place) = place.as_ref().filter(|_| !self.model.workloads.iter().any(concerns)) else { return };
        let mut wanted = namespaces
            .requirements()
            .filter(|requirement| !matches!(requirement, Requirement::NotIn(..) | Requirement::Missing(_)))
            .map(Requirement::label);
        let unknown = wanted.find(|label| !self.labels().contains(label));
        let warning = Diagnostic::warning(
            place,
            format!("{} `{}` concerns no workload", self.guard.kind.name(), self.guard.name),
        );
        self.warnings.push(match unknown {
            Some(label) => {
                let near = suggest(label, self.labels());
                warning.help(format!("no namespace has the label `{label}`: {near} ({NAMESPACES})"))
            }
            None => warning.help("a workload must fulfil all that `for` says"),
        });
    }

    /// Labels of namespaces.
    fn labels(&self) -> Vec<&str> {
        let labels: BTreeSet<_> =
            self.model.namespaces.values().flat_map(Labels::iter).map(|(label, _)| label).collect();
        labels.into_iter().collect()
    }

    fn service(&mut self, service: &ServiceName, place: &Place, so: &str) {
        if let Some(warning) = self.model.nobody(service, place, so) {
            self.warnings.push(warning);
        }
    }

    /// Whether somebody can have a named port.
    fn named_port(&mut self, rule: &Rule, port: &str) {
        if let (
            Direction::Egress,
            Whom::Is(Peer::Cidrs(_) | Peer::Entity(Entity::Metadata | Entity::Node | Entity::Nodes | Entity::World)),
        ) = (rule.direction, &rule.peer)
        {
            let error = Diagnostic::error(
                &rule.place,
                format!("`{port}` is the name of a port, and no workload listens there"),
            );
            self.found.push(error.help("write the port's number; only workloads name their ports"));
        }
    }

    /// A node is other too: who forgets that denies its health checks.
    fn health_checks(&mut self, before: &[Guard]) {
        let of_node = |rule: &&Rule| {
            rule.direction == Direction::Ingress
                && matches!(rule.peer, Whom::Is(Peer::Entity(Entity::Node | Entity::Nodes)))
        };
        if before.iter().flat_map(|guard| &guard.rules).any(|rule| of_node(&rule)) {
            return;
        }
        let own = self.guard.rules.iter().take_while(|rule| !of_node(rule));
        let denies = |rule: &&Rule| {
            (rule.direction, rule.action) == (Direction::Ingress, Action::Deny)
                && rule.ports.contains(&Ports::Any)
                && matches!(rule.peer, Whom::Other | Whom::Is(Peer::Any))
        };
        if let Some(rule) = own.into_iter().find(denies) {
            let warning = Diagnostic::warning(
                &rule.place,
                format!("`{}` also denies what a workload's own node begins, such as health checks", rule.name),
            );
            self.warnings.push(
                warning.help("write `- pass: { from: node }` above it, or `- deny: { from: node }` if it is meant"),
            );
        }
    }
}

/// Where labels of namespaces come from.
const NAMESPACES: &str = "the workloads file says `namespaces: [{ name: shop, labels: { tenant: a } }]`";
