//! Who made whom, and for which controllers other objects stand.
//!
//! A workload's owner is what people deploy, so that those that one object made are one in what is printed:
//!
//! - A pod belongs to the owner that is its controller, by kind and name as the pod says them: `web-7d77fb55cc[ReplicaSet]`. The suffix stays, and
//!   the label `pod-template-hash` says nothing: without more objects nobody knows what is behind the `ReplicaSet`.
//! - Where the owner is an object of the input that has an owner itself, it is that one's: with the `ReplicaSet` at hand the pod is
//!   `web[Deployment]`. So it is where only the `Deployment` is at hand and both its name and the labels of its pods fit.
//! - A reference without a kind is to a `Pod`.
//! - A workload that stands for a controller's pods belongs to what made the controller, or else to the controller: `web[Deployment]`.
//! - A pod without one is its own: `web[Pod]`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Metadata, Object,
    pods::{Controller, Pod},
};
use crate::{labels::Labels, workloads::Owner};

/// What makes objects of a kind that make pods, and names them after itself.
const MAKERS: [(&str, &str); 2] = [("ReplicaSet", "Deployment"), ("Job", "CronJob")];

/// An owner and its namespace.
type Key<'a> = (&'a str, Arc<Owner>);

/// Controllers by who they are as an owner.
pub(super) struct Owners<'a>(BTreeMap<Key<'a>, &'a Controller>);

impl<'a> Owners<'a> {
    pub(super) fn new(objects: &[&'a Object]) -> Self {
        let controllers = objects.iter().filter_map(|object| match object {
            Object::Controller(controller) => Some((key(&controller.metadata), controller)),
            _ => None,
        });
        Self(controllers.collect())
    }

    /// Who a pod's or controller's workload belongs to in the end.
    pub(super) fn of(&self, metadata: &'a Metadata, labels: &Labels) -> Option<Arc<Owner>> {
        self.chain(metadata, labels).pop()
    }

    /// All who made something, first its own maker.
    fn chain(&self, metadata: &'a Metadata, labels: &Labels) -> Vec<Arc<Owner>> {
        let mut chain: Vec<Arc<Owner>> = Vec::new();
        let mut next = metadata.owner.clone();
        while let Some(owner) = next.filter(|owner| !chain.contains(owner)) {
            next = self.above(&metadata.name.namespace, &owner, labels);
            chain.push(owner);
        }
        chain
    }

    fn above(&self, namespace: &'a str, owner: &Arc<Owner>, labels: &Labels) -> Option<Arc<Owner>> {
        if let Some(controller) = self.0.get(&(namespace, Arc::clone(owner))) {
            return controller.metadata.owner.clone();
        }
        let (_, kind) = MAKERS.into_iter().find(|(made, _)| *made == owner.kind)?;
        let (name, _) = owner.name.rsplit_once('-')?;
        let maker = Arc::new(Owner { kind: kind.to_owned(), name: name.to_owned() });
        let template = &self.0.get(&(namespace, Arc::clone(&maker)))?.template;
        template.labels.iter().all(|(label, value)| labels.get(label) == Some(value)).then_some(maker)
    }

    /// Controllers for whose pods no other object stands.
    pub(super) fn alone(&self, pods: &[&'a Pod]) -> Vec<&'a Controller> {
        let mut stood_for: BTreeSet<Key<'a>> = BTreeSet::new();
        for pod in pods {
            let chain = self.chain(&pod.metadata, &pod.template.labels).into_iter();
            // A pod that has ended is the end of its job, but others come after it.
            let chain = chain.filter(|owner| !pod.finished || owner.kind == "Job");
            stood_for.extend(chain.map(|owner| (pod.metadata.name.namespace.as_str(), owner)));
        }
        let (made, others): (Vec<_>, Vec<_>) =
            self.0.iter().partition(|(_, controller)| controller.metadata.owner.is_some());
        let mut alone = Vec::new();
        for (key, controller) in made.into_iter().chain(others) {
            if controller.retired || stood_for.contains(key) {
                continue;
            }
            let chain = self.chain(&controller.metadata, &controller.template.labels);
            stood_for.extend(chain.into_iter().map(|owner| (controller.metadata.name.namespace.as_str(), owner)));
            alone.push(*controller);
        }
        alone
    }
}

/// A controller, or a pod that nothing made, as an owner.
pub(super) fn owner(metadata: &Metadata) -> Arc<Owner> {
    Arc::new(Owner { kind: metadata.kind.to_owned(), name: metadata.name.name.clone() })
}

fn key(metadata: &Metadata) -> Key<'_> {
    (&metadata.name.namespace, owner(metadata))
}

#[cfg(test)]
mod tests {
    use crate::manifest::manifests;

    const POD: &str = "apiVersion: v1\nkind: Pod\nspec: {}\n";
    const TEMPLATE: &str = "spec: { template: { metadata: { labels: { app: web } }, spec: {} } }\n";

    fn pod(name: &str, owner: &str, more: &str) -> String {
        let owner = match owner.split_once('/') {
            Some((kind, name)) => format!("ownerReferences: [{{ kind: {kind}, name: {name}, controller: true }}], "),
            None => String::new(),
        };
        format!(
            "{POD}metadata: {{ {owner}name: {name}, labels: {{ app: web, pod-template-hash: 7d77fb55cc }} }}\n{more}---\n"
        )
    }

    fn deployment(name: &str) -> String {
        format!("apiVersion: apps/v1\nkind: Deployment\nmetadata: {{ name: {name} }}\n{TEMPLATE}---\n")
    }

    fn replica_set(name: &str, owner: &str, replicas: u8) -> String {
        let owner = format!("ownerReferences: [{{ kind: Deployment, name: {owner}, controller: true }}]");
        format!(
            "apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {{ name: {name}, {owner} }}\n\
             spec: {{ replicas: {replicas}, template: {{ metadata: {{ labels: {{ app: web }} }}, spec: {{}} }} }}\n---\n"
        )
    }

    fn job(status: &str) -> String {
        let owner = "ownerReferences: [{ kind: CronJob, name: tidy, controller: true }]";
        format!("apiVersion: batch/v1\nkind: Job\nmetadata: {{ name: tidy-1, {owner} }}\n{TEMPLATE}{status}---\n")
    }

    /// Workloads with their owners: `web-1 of web[Deployment]`.
    fn owners(text: &str) -> Vec<String> {
        let workloads = manifests(text).workloads().unwrap().workloads;
        let one = |(name, workload): (&crate::workloads::WorkloadName, &std::sync::Arc<crate::workloads::Workload>)| {
            let owner = workload.owner.as_ref();
            owner.map_or_else(|| name.name.clone(), |owner| format!("{} of {}[{}]", name.name, owner.name, owner.kind))
        };
        workloads.iter().map(one).collect()
    }

    #[test]
    fn a_pod_belongs_to_whom_it_says() {
        assert_eq!(owners(&pod("web-1", "", "")), ["web-1 of web-1[Pod]"]);
        assert_eq!(
            owners(&pod("web-1", "ReplicaSet/web-7d77fb55cc", "")),
            ["web-1 of web-7d77fb55cc[ReplicaSet]"],
            "nobody knows what is behind it"
        );
        assert_eq!(owners(&pod("etcd-n1", "Node/n1", "")), ["etcd-n1 of etcd-n1[Pod]"]);
        let references = "ownerReferences: [{ kind: Thing, name: x }, { name: web, controller: true }]";
        assert_eq!(
            owners(&format!("{POD}metadata: {{ name: web-1, {references} }}\n")),
            ["web-1 of web[Pod]"],
            "the controller, and a pod where no kind is said"
        );
    }

    #[test]
    fn a_pod_belongs_to_the_last_owner_at_hand() {
        let pod = pod("web-1", "ReplicaSet/web-7d77fb55cc", "");
        let set = replica_set("web-7d77fb55cc", "web", 1);
        for text in [
            format!("{pod}{set}{}", deployment("web")),
            format!("{}{set}{pod}", deployment("web")),
            format!("{pod}{}", deployment("web")),
            format!("{set}{pod}"),
        ] {
            assert_eq!(owners(&text), ["web-1 of web[Deployment]"], "{text}");
        }
        assert_eq!(
            owners(&format!("{pod}{}", deployment("shop"))),
            ["shop of shop[Deployment]", "web-1 of web-7d77fb55cc[ReplicaSet]"]
        );
    }

    #[test]
    fn a_controller_without_pods_stands_for_them() {
        assert_eq!(owners(&deployment("web")), ["web of web[Deployment]"]);
        let set = replica_set("web-1", "web", 1);
        assert_eq!(owners(&format!("{}{set}", deployment("web"))), ["web-1 of web[Deployment]"]);
        let old = replica_set("web-1", "web", 0);
        assert_eq!(
            owners(&format!("{}{old}", deployment("web"))),
            ["web of web[Deployment]"],
            "what is only kept to go back to it stands for nobody"
        );
        let gone = pod("web-1", "ReplicaSet/web-1", "status: { phase: Failed }\n");
        assert_eq!(owners(&format!("{}{set}{gone}", deployment("web"))), ["web-1 of web[Deployment]"]);
        let zero = "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: { name: db }\nspec: { replicas: 0, template: { spec: {} } }\n";
        assert_eq!(owners(zero), ["db of db[StatefulSet]"]);
    }

    #[test]
    fn a_job_is_done_once_and_its_maker_goes_on() {
        let cron = "apiVersion: batch/v1\nkind: CronJob\nmetadata: { name: tidy }\nspec: { jobTemplate: { spec: { template: { metadata: { labels: { app: web } }, spec: {} } } } }\n---\n";
        assert_eq!(owners(cron), ["tidy of tidy[CronJob]"]);
        assert_eq!(owners(&format!("{cron}{}", job(""))), ["tidy-1 of tidy[CronJob]"]);
        let done = job("status: { conditions: [{ type: Complete, status: \"True\" }] }\n");
        assert_eq!(owners(&format!("{cron}{done}")), ["tidy of tidy[CronJob]"]);
        assert!(owners(&done).is_empty());
        let ended = pod("tidy-1-x", "Job/tidy-1", "status: { phase: Succeeded }\n");
        assert_eq!(owners(&format!("{cron}{}{ended}", job(""))), ["tidy of tidy[CronJob]"]);
        let running = pod("tidy-1-x", "Job/tidy-1", "");
        assert_eq!(owners(&format!("{cron}{running}")), ["tidy-1-x of tidy[CronJob]"]);
    }

    #[test]
    fn owners_in_a_circle_come_to_an_end() {
        let set = |name: &str, owner: &str| {
            let owner = format!("ownerReferences: [{{ kind: ReplicaSet, name: {owner}, controller: true }}]");
            format!("apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {{ name: {name}, {owner} }}\n{TEMPLATE}---\n")
        };
        assert_eq!(owners(&format!("{}{}", set("a", "b"), set("b", "a"))).len(), 1);
    }
}
